package main

import "sync"

// inlet is a stream from the node. It takes bytes in order of their offsets, at most a window of them, and acknowledges those its reader has used.
type inlet struct {
	link    acker
	channel uint32
	stream  uint16

	mu       sync.Mutex
	changed  sync.Cond // bytes, end or close
	ring     ring      // the bytes from used to received
	received uint64    // the offset expected next
	used     uint64
	acked    uint64 // the offset told to the node last
	fin      bool
	broken   bool // nobody reads: bytes are acknowledged and dropped
	closed   bool
}

// acker is what an inlet needs of its link.
type acker interface {
	sendAck(channel uint32, stream uint16, offset uint64, window uint32)
}

func newInlet(link acker, channel uint32, window int) *inlet {
	i := &inlet{link: link, channel: channel, stream: streamIn, ring: ring{limit: window}}
	i.changed.L = &i.mu
	return i
}

// accept takes the new part of a data frame. It reports false for a frame beyond the window, which a well-behaved node never sends.
func (i *inlet) accept(offset uint64, data []byte, fin bool) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed || i.fin || offset > i.received {
		return true // late, or beyond a gap that a resend will fill
	}
	if end := offset + uint64(len(data)); end < i.received || end > i.used+uint64(i.ring.limit) {
		return end < i.received
	}
	data = data[i.received-offset:]
	i.received += uint64(len(data))
	i.fin = fin
	if i.broken {
		i.used = i.received
		go i.acknowledge()
	} else {
		i.ring.put(data)
	}
	i.changed.Broadcast()
	return true
}

// next waits for bytes and returns a contiguous piece of them; end is true behind the last one. ok is false when the channel was closed.
func (i *inlet) next() (piece []byte, end, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for !i.closed {
		if piece = i.ring.at(0); len(piece) > 0 {
			return piece, false, true
		}
		if i.fin {
			return nil, true, true
		}
		i.changed.Wait()
	}
	return nil, false, false
}

// use drops n bytes of the piece next returned, and tells the node when a quarter of the window is due.
func (i *inlet) use(n int) {
	i.mu.Lock()
	i.ring.drop(n)
	i.used += uint64(n)
	due := i.used-i.acked >= uint64(i.ring.limit)/4
	i.changed.Broadcast()
	i.mu.Unlock()
	if due {
		i.acknowledge()
	}
}

// waitUsed waits until the reader has used everything below offset; false when that will never be.
func (i *inlet) waitUsed(offset uint64) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	for i.used < offset && !i.closed && !i.broken && !i.fin {
		i.changed.Wait()
	}
	return i.used >= offset && !i.closed && !i.broken
}

// acknowledge tells the node what has been used.
func (i *inlet) acknowledge() {
	i.mu.Lock()
	i.acked = i.used
	offset, window := i.used, i.ring.limit
	i.mu.Unlock()
	i.link.sendAck(i.channel, i.stream, offset, uint32(window))
}

// breakOff makes the stream swallow what still comes, for a reader that went away: a process that closed its stdin.
func (i *inlet) breakOff() {
	i.mu.Lock()
	i.broken = true
	i.used = i.received
	i.ring.release()
	i.changed.Broadcast()
	i.mu.Unlock()
	i.acknowledge()
}

// end acknowledges the whole stream, its FIN included, and gives the memory back. The reader calls it behind the last byte.
func (i *inlet) end() {
	i.mu.Lock()
	i.ring.release()
	i.mu.Unlock()
	i.acknowledge()
}

// offsets are what a new node is told: up to where the bytes have been handed on, from which the window counts, and up to where they are here and need not come again.
func (i *inlet) offsets() (kept, taken uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.used, i.received
}

// close wakes the reader for good.
func (i *inlet) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	i.changed.Broadcast()
}
