package main

import (
	"errors"
	"io"
	"os"
	"syscall"
)

type readArgs struct {
	named
	Channel uint32 `json:"channel"`
	Path    []byte `json:"path"`
	Offset  int64  `json:"offset"`
	Length  *int64 `json:"length"`
	Window  int    `json:"window"`
	Direct  *int64 `json:"direct"`
}

type readAnswer struct {
	Entry *entry `json:"entry"`
	Path  []byte `json:"path,omitempty"`
}

// read answers the request of that name: a file, or a part of it, goes to the node on stream 1; or the node is told where it is, to get `direct` bytes or more itself.
func read(l *link, args *readArgs) (any, error) {
	at, err := absolute(args.Path)
	if err != nil {
		return nil, err
	}
	if args.Offset < 0 || args.Length != nil && *args.Length < 0 {
		return nil, protocol("offset and length may not be negative")
	}
	return l.openChannel(args.Channel, "read", withStreams(args.Window, false, streamOut), func(c *channel) (any, error) {
		file, e, err := openRegular(at)
		if err != nil {
			return nil, err
		}
		length := int64(-1)
		if args.Length != nil {
			length = *args.Length
		}
		if args.Direct != nil && within(length, e.Size-args.Offset) >= *args.Direct {
			if place, err := placeOnDisk(file); err == nil {
				file.Close()
				return readAnswer{e, []byte(place)}, nil
			}
		}
		go func() {
			err := sendFile(c.out[streamOut], file, args.Offset, length, e.Size)
			file.Close()
			c.out[streamOut].finish()
			c.finished(closedEvent{}, err)
		}()
		return readAnswer{Entry: e}, nil
	})
}

// within is how much of `rest` is meant by a length, of which -1 is all.
func within(length, rest int64) int64 {
	if length < 0 {
		return rest
	}
	return min(length, rest)
}

// openRegular opens a file for reading, without being caught by a fifo or device that waits for somebody.
func openRegular(at string) (*os.File, *entry, error) {
	fd, err := syscall.Open(at, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, failed(err, at)
	}
	var st syscall.Stat_t
	err = syscall.Fstat(fd, &st)
	if err == nil {
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			err = syscall.SetNonblock(fd, false)
		case syscall.S_IFDIR:
			err = syscall.EISDIR
		default:
			err = syscall.EINVAL
		}
	}
	if err != nil {
		syscall.Close(fd)
		return nil, nil, failed(err, at)
	}
	return os.NewFile(uintptr(fd), at), newNames().entry(at, &st), nil
}

// sendFile reads into the stream's own memory, in the largest pieces a frame takes. length -1 is all; size is only a hint.
func sendFile(out *outlet, file *os.File, offset, length, size int64) error {
	for length != 0 {
		want := int64(payloadLimit)
		if rest := size - offset; rest > 0 && rest < want {
			want = rest + 1 // one more, to see the end with the same read
		}
		piece, ok := out.reserve(int(want))
		if !ok {
			return errChannelClosed
		}
		piece = piece[:min(len(piece), payloadLimit)]
		if length > 0 && int64(len(piece)) > length {
			piece = piece[:length]
		}
		n, err := file.ReadAt(piece, offset)
		out.commit(n)
		offset += int64(n)
		if length > 0 {
			length -= int64(n)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, syscall.ESPIPE) && n == 0 {
			return failed(err, file.Name())
		}
		if err != nil {
			return err
		}
	}
	return nil
}
