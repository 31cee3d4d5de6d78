package main

import "sync"

// fullRing is the usual window; rings of this size are reused, since fresh memory is dear inside gVisor (a page fault each 4 KiB).
const fullRing = 1 << 20

var fullRings = sync.Pool{New: func() any { b := make([]byte, fullRing); return &b }}

// ring holds the bytes of a stream that are between two of its offsets. It starts empty and grows to its limit as it is used.
type ring struct {
	limit int // most bytes it may hold
	buf   []byte
	head  int // index of the oldest byte
	size  int // bytes held
}

// room returns a free contiguous piece, at least one byte and preferably `want` long, or nil when the ring is full. add makes it part of the ring.
func (r *ring) room(want int) []byte {
	if r.size == 0 {
		r.head = 0
	}
	if piece := r.free(); len(piece) >= want || len(r.buf) == r.limit {
		return piece
	}
	r.grow(r.size + want)
	return r.free()
}

func (r *ring) free() []byte {
	if r.size == len(r.buf) {
		return nil
	}
	end := r.head + r.size
	if end >= len(r.buf) {
		end -= len(r.buf)
		return r.buf[end:r.head]
	}
	return r.buf[end:]
}

func (r *ring) grow(need int) {
	size := max(len(r.buf), 1<<10)
	for size < need {
		size *= 2
	}
	size = min(size, r.limit)
	if size <= len(r.buf) {
		return
	}
	var fresh []byte
	if size == fullRing {
		fresh = *fullRings.Get().(*[]byte)
	} else {
		fresh = make([]byte, size)
	}
	for n := 0; n < r.size; {
		n += copy(fresh[n:], r.at(n))
	}
	// The old buffer goes to the collector, never to the pool: a sender may still be reading from it.
	r.buf, r.head = fresh, 0
}

// add counts n bytes that were written into room as held.
func (r *ring) add(n int) { r.size += n }

// put copies as much of p as fits and returns how much that was.
func (r *ring) put(p []byte) (n int) {
	for n < len(p) {
		piece := r.room(len(p) - n)
		if len(piece) == 0 {
			break
		}
		k := copy(piece, p[n:])
		r.add(k)
		n += k
	}
	return n
}

// at returns the contiguous bytes held from the skip-th on.
func (r *ring) at(skip int) []byte {
	if skip >= r.size {
		return nil
	}
	start := r.head + skip
	n := r.size - skip
	if start >= len(r.buf) {
		start -= len(r.buf)
	}
	return r.buf[start:min(start+n, len(r.buf))]
}

// drop forgets the n oldest bytes.
func (r *ring) drop(n int) {
	r.size -= n
	r.head += n
	if r.head >= len(r.buf) {
		r.head -= len(r.buf)
	}
}

// release gives the memory back. Nobody may hold a piece of the ring any more.
func (r *ring) release() {
	if len(r.buf) == fullRing {
		b := r.buf
		fullRings.Put(&b)
	}
	r.buf, r.head, r.size = nil, 0, 0
}
