package main

import "io"

// inletReader reads an inlet as an io.Reader.
type inletReader struct{ in *inlet }

func (r inletReader) Read(p []byte) (int, error) {
	piece, end, ok := r.in.next()
	if !ok {
		return 0, errChannelClosed
	}
	if end {
		return 0, io.EOF
	}
	n := copy(p, piece)
	r.in.use(n)
	return n, nil
}
