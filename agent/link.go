package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// requestLimit is how many requests of a link may be under way at once.
const requestLimit = 1024

var errNotOpen = errors.New("no hello yet")

// link is one packet socket to the node. Its one reader never writes and never waits, so a node that reads always gets on.
type link struct {
	name   string
	fd     uintptr
	inward *gate
	room   *gate
	ops    map[string]operation

	greeted func() // called after each hello, or nil

	writing sync.Mutex  // one writer at a time
	open    atomic.Bool // the node has said hello

	underWay atomic.Int32
	last     chan struct{} // closed when the last request before the first hello's success is done; the reader's alone

	mu       sync.Mutex
	epoch    uint64
	channels map[uint32]*channel
}

// newLink takes over a descriptor that is a SOCK_SEQPACKET socket.
func newLink(fd int, name string, ops map[string]operation) (*link, error) {
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	l := &link{name: name, fd: uintptr(fd), ops: ops, channels: map[uint32]*channel{}}
	var err error
	if l.inward, err = newGate(fd, name, syscall.EPOLLIN|syscall.EPOLLRDHUP, true); err != nil {
		return nil, err
	}
	l.room, err = newGate(fd, name+" room", syscall.EPOLLOUT, false)
	return l, err
}

// serve reads frames until the other end is gone.
func (l *link) serve() error {
	packet := make([]byte, frameLimit+1)
	for {
		var n int
		var err error
		wait := l.inward.wait(func() bool {
			n, err = briefRead(l.fd, packet)
			return err != syscall.EAGAIN
		})
		switch {
		case wait != nil:
			return wait
		case err == syscall.ECONNRESET || err == nil && n == 0:
			return nil
		case err != nil:
			return err
		}
		if err := l.take(packet[:n]); err != nil {
			logf("%s: dropped a frame: %v", l.name, err)
		}
	}
}

// take handles one frame. The packet is only valid during the call.
func (l *link) take(packet []byte) error {
	h, payload, err := parseFrame(packet)
	if err != nil {
		return err
	}
	switch h.kind {
	case typeRequest:
		if l.underWay.Add(1) > requestLimit {
			l.underWay.Add(-1)
			go l.answer(h.channel, nil, &failure{Code: "EAGAIN", Message: "1024 requests are under way"})
			return nil
		}
		l.begin(h.channel, append([]byte(nil), payload...))
	case typeData:
		ch := l.channel(h.channel)
		if ch == nil || ch.in == nil || h.stream != streamIn {
			return nil // closed meanwhile
		}
		if !ch.in.accept(h.offset, payload, h.flags&flagFin != 0) {
			return errors.New("data beyond the window")
		}
	case typeAck:
		ch := l.channel(h.channel)
		if ch == nil || h.stream > streamErr || ch.out[h.stream] == nil {
			return nil
		}
		if !ch.out[h.stream].ack(h.offset, binary.LittleEndian.Uint32(payload)) {
			return errors.New("ack of bytes never sent")
		}
	default:
		return errors.New("a response or event from the node")
	}
	return nil
}

// begin starts a request. Until a hello has succeeded they run one by one, so that a node may send others right behind its first hello.
func (l *link) begin(number uint32, payload []byte) {
	before := l.last
	done := make(chan struct{})
	if !l.open.Load() {
		l.last = done
	}
	go func() {
		if before != nil {
			<-before
		}
		l.handle(number, payload)
		close(done)
	}()
}

// handle runs one request. A defect in one request must not end the sandbox, whose init this process is: it is logged and answered.
func (l *link) handle(number uint32, payload []byte) {
	defer l.underWay.Add(-1)
	defer func() {
		if r := recover(); r != nil {
			logf("%s: request failed: %v\n%s", l.name, r, debug.Stack())
			l.answer(number, nil, &failure{Code: "EIO", Message: "the agent failed on this request; its log says how"})
		}
	}()
	var name named
	if err := json.Unmarshal(payload, &name); err != nil {
		logf("%s: request %d is not JSON: %v", l.name, number, err)
		l.answer(number, nil, protocol("not JSON: %v", err))
		return
	}
	if name.Op == "hello" {
		l.hello(number, payload)
		return
	}
	op, ok := l.ops[name.Op]
	if !ok {
		l.answer(number, nil, &failure{Code: "ENOSYS", Message: "unknown op " + name.Op})
		return
	}
	answer, err := op(l, payload)
	l.answer(number, answer, err)
}

// answer sends the response to a request: {"ok": true, …answer} or {"ok": false, "error": …}.
func (l *link) answer(number uint32, answer any, err error) {
	if sendErr := l.send(header{kind: typeResponse, channel: number}, encodeAnswer(answer, err)); sendErr != nil {
		logf("%s: response %d: %v", l.name, number, sendErr)
	}
}

func encodeAnswer(answer any, err error) []byte {
	if err != nil {
		return mustJSON(struct {
			OK    bool     `json:"ok"`
			Error *failure `json:"error"`
		}{false, asFailure(err)})
	}
	if answer == nil {
		return []byte(`{"ok":true}`)
	}
	body := mustJSON(answer)
	if len(body) == 2 { // {}
		return []byte(`{"ok":true}`)
	}
	return append([]byte(`{"ok":true,`), body[1:]...)
}

// mustJSON encodes one of the agent's own types, which cannot fail.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// event tells the node something about a channel, or about the sandbox for channel 0. Without a hello nobody listens: adoption tells it then.
func (l *link) event(channel uint32, payload []byte) {
	if err := l.send(header{kind: typeEvent, channel: channel}, payload); err != nil && !errors.Is(err, errNotOpen) {
		logf("%s: event: %v", l.name, err)
	}
}

func (l *link) sendData(h header, payload []byte) error { return l.send(h, payload) }

func (l *link) sendAck(channel uint32, stream uint16, offset uint64, window uint32) {
	h := header{kind: typeAck, stream: stream, channel: channel, offset: offset}
	if err := l.send(h, binary.LittleEndian.AppendUint32(nil, window)); err != nil && !errors.Is(err, errNotOpen) {
		logf("%s: ack: %v", l.name, err)
	}
}

// send writes one frame, waiting while the socket is full.
func (l *link) send(h header, payload []byte) error {
	if !l.open.Load() {
		return errNotOpen
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.write(h, payload)
}

// write needs the lock `writing`.
func (l *link) write(h header, payload []byte) error {
	if len(payload) > payloadLimit {
		return errLongFrame
	}
	first := h.encode()
	parts := [2]syscall.Iovec{{Base: &first[0], Len: headerSize}}
	count := 1
	if len(payload) > 0 {
		parts[1] = syscall.Iovec{Base: &payload[0], Len: uint64(len(payload))}
		count = 2
	}
	var errno syscall.Errno
	err := l.room.once(func() bool {
		for {
			_, _, errno = syscall.RawSyscall(syscall.SYS_WRITEV, l.fd, uintptr(unsafe.Pointer(&parts[0])), uintptr(count))
			if errno != syscall.EINTR {
				return errno != syscall.EAGAIN
			}
		}
	})
	if err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// channel finds an open channel, nil when there is none.
func (l *link) channel(id uint32) *channel {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.channels[id]
}
