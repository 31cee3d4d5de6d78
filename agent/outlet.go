package main

import "sync"

// Windows of a stream, in bytes.
const (
	defaultWindow = 1 << 20
	minWindow     = 4 << 10
	maxWindow     = 8 << 20
)

// sender is what an outlet needs of its link.
type sender interface {
	sendData(h header, payload []byte) error
}

// outlet is a stream towards the node. It keeps what it was given until the node has acknowledged it, and never holds or sends more than the
// window beyond that. One goroutine fills it; any goroutine may flush it.
type outlet struct {
	link    sender
	channel uint32
	stream  uint16

	mu       sync.Mutex
	changed  sync.Cond // room, quiesce or end
	ring     ring      // the bytes from acked to filled
	acked    uint64
	sent     uint64
	filled   uint64
	limit    uint64 // the node takes bytes below this offset
	quiet    bool   // quiesced: nothing may be filled or sent
	flushing bool
	fin      bool // nothing will be added
	finSent  bool
	closed   bool
}

func newOutlet(link sender, channel uint32, stream uint16, window int) *outlet {
	o := &outlet{link: link, channel: channel, stream: stream, ring: ring{limit: window}, limit: uint64(window)}
	o.changed.L = &o.mu
	return o
}

// reserve waits for room and returns a piece to fill, preferably `want` bytes long; false when the channel was closed.
func (o *outlet) reserve(want int) ([]byte, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		if o.closed {
			return nil, false
		}
		if !o.quiet {
			if piece := o.ring.room(want); len(piece) > 0 {
				return piece, true
			}
		}
		o.changed.Wait()
	}
}

// commit adds the first n bytes of the reserved piece to the stream and sends them.
func (o *outlet) commit(n int) {
	o.mu.Lock()
	o.ring.add(n)
	o.filled += uint64(n)
	o.mu.Unlock()
	o.flush()
}

// Write adds all of p to the stream, waiting for room. It makes an outlet an io.Writer.
func (o *outlet) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		piece, ok := o.reserve(len(p) - n)
		if !ok {
			return n, errChannelClosed
		}
		k := copy(piece, p[n:])
		n += k
		o.commit(k)
	}
	return n, nil
}

// tryWrite adds all of p or, when the window has no room for it now, nothing.
func (o *outlet) tryWrite(p []byte) bool {
	o.mu.Lock()
	if o.closed || o.ring.limit-o.ring.size < len(p) {
		o.mu.Unlock()
		return false
	}
	o.filled += uint64(o.ring.put(p))
	o.mu.Unlock()
	o.flush()
	return true
}

// finish ends the stream behind what it holds.
func (o *outlet) finish() {
	o.mu.Lock()
	o.fin = true
	o.mu.Unlock()
	o.flush()
}

// offset returns how many bytes the stream has been given.
func (o *outlet) offset() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.filled
}

func (o *outlet) isClosed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed
}

// flush sends what the window allows. Of several goroutines one sends, the others leave it the work.
func (o *outlet) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.flushing {
		return
	}
	o.flushing = true
	for !o.closed && !o.quiet {
		piece := o.ring.at(int(o.sent - o.acked))
		if o.sent >= o.limit {
			piece = nil
		} else if open := o.limit - o.sent; uint64(len(piece)) > open {
			piece = piece[:open]
		}
		if len(piece) > payloadLimit {
			piece = piece[:payloadLimit]
		}
		h := header{kind: typeData, stream: o.stream, channel: o.channel, offset: o.sent}
		if o.fin && o.sent+uint64(len(piece)) == o.filled {
			h.flags = flagFin
		}
		if len(piece) == 0 && (h.flags == 0 || o.finSent) {
			break
		}
		o.sent += uint64(len(piece))
		o.finSent = h.flags != 0
		o.mu.Unlock()
		err := o.link.sendData(h, piece)
		o.mu.Lock()
		if err != nil {
			break // no hello yet, or the link is gone; the next hello resends
		}
	}
	o.flushing = false
	o.retire()
	o.changed.Broadcast()
}

// retire gives the memory back when nobody can need it any more. Called with the lock held.
func (o *outlet) retire() {
	if o.fin && !o.flushing && (o.closed || o.finSent && o.acked == o.filled) {
		o.ring.release()
	}
}

// ack notes that the node keeps everything below offset and takes window more. It reports whether the offset made sense.
func (o *outlet) ack(offset uint64, window uint32) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if offset > o.sent {
		return false
	}
	if offset >= o.acked {
		o.ring.drop(int(offset - o.acked))
		o.acked = offset
		o.limit = offset + uint64(window)
		o.retire()
		o.changed.Broadcast()
		if o.sent < o.filled && !o.flushing {
			go o.flush() // not here: the reader of the link never writes
		}
	}
	return true
}

// rewind makes the node's received offset the next to send, after a hello. Without one (the node doesn't know the stream) it is the acknowledged one.
func (o *outlet) rewind(received uint64, known bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if known && received > o.acked {
		received = min(received, o.filled)
		o.ring.drop(int(received - o.acked))
		o.acked = received
	}
	o.sent = o.acked
	o.limit = o.acked + uint64(o.ring.limit)
	o.finSent = false
	o.changed.Broadcast()
}

// quiesce stops and restarts filling and sending. When it returns nothing is under way.
func (o *outlet) quiesce(on bool) {
	o.mu.Lock()
	o.quiet = on
	o.changed.Broadcast()
	for on && o.flushing {
		o.changed.Wait()
	}
	o.mu.Unlock()
	if !on {
		o.flush()
	}
}

// close drops what is held and wakes whoever fills.
func (o *outlet) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.retire()
	o.changed.Broadcast()
}
