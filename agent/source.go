package main

import (
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// Sizes of a read from a pipe or terminal: small at first, larger when a read fills what it was given.
const (
	firstRead = 4 << 10
	bulkRead  = 128 << 10
)

// A process that writes often and little would make a frame of every write, dear for it, the agent and the node. So once it has written quickReads
// times with less than a calm between, its writes are gathered for a moment before each read. A single answer or key press is never held up.
const (
	quickReads = 8
	smallRead  = 32 << 10
	calm       = time.Millisecond
	gathering  = time.Millisecond
)

// bulkPipe is how much the pipe of a busy process may hold, so that it isn't stopped while the agent sends or gathers.
const bulkPipe = 1 << 20

// source moves what a process writes from its pipe or terminal into an outlet, as fast as the node takes it.
type source struct {
	file    *os.File
	out     *outlet
	drained func() // called once, see mark

	ended atomic.Bool // the process has
	done  atomic.Bool // the pump has, and closes the file
	told  bool
	mark  uint64 // the offset reached when everything readable at the process' end had been read
}

// pump reads until the last holder of the other side is gone or the channel is closed.
func (s *source) pump() {
	defer s.file.Close()
	defer s.out.finish()
	defer s.done.Store(true)
	defer s.tell()
	raw, err := s.file.SyscallConn()
	if err != nil {
		return // closed already
	}
	want, quick, widened := firstRead, 0, false
	var last time.Time
	for {
		piece, ok := s.out.reserve(want)
		if !ok {
			return
		}
		n, err := s.read(raw, piece)
		if n <= 0 {
			if err != nil && err != syscall.EIO && !s.out.isClosed() { // EIO: the end of a terminal
				logf("source: %v", err)
			}
			return
		}
		now := time.Now()
		if n < smallRead && now.Sub(last) < calm {
			quick++
		} else {
			quick = 0
		}
		last = now
		s.out.commit(n)
		if n == len(piece) && want < bulkRead {
			want *= 4
		}
		if !widened && (want > firstRead || quick == quickReads) {
			widened = true
			s.widen(raw)
		}
		if quick >= quickReads {
			time.Sleep(gathering)
			last = time.Now()
		}
	}
}

// widen makes the pipe larger; a terminal stays as it is.
func (s *source) widen(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		_, _, _ = syscall.Syscall(syscall.SYS_FCNTL, fd, fSetPipeSize, bulkPipe) // only a matter of speed
	})
}

// read waits for bytes; 0 is the end.
func (s *source) read(raw syscall.RawConn, piece []byte) (n int, err error) {
	for {
		wait := raw.Read(func(fd uintptr) bool {
			if n, err = briefRead(fd, piece); err != syscall.EAGAIN {
				return true
			}
			if s.ended.Load() {
				s.tell()
			}
			return false
		})
		if wait == nil {
			return n, err
		}
		if !errors.Is(wait, os.ErrDeadlineExceeded) {
			return 0, wait
		}
		// processEnded woke us: look again, now knowing that it has.
		if err := s.file.SetReadDeadline(time.Time{}); err != nil {
			return 0, err
		}
	}
}

// processEnded makes the pump note the offset at which it has read everything there is now, even if a descendant keeps the other side open.
func (s *source) processEnded() {
	s.ended.Store(true)
	if err := s.file.SetReadDeadline(time.Unix(1, 0)); err != nil && !s.done.Load() && !s.out.isClosed() {
		logf("source: %v", err)
	}
}

// tell is called by the pump only.
func (s *source) tell() {
	if !s.told {
		s.told = true
		s.mark = s.out.offset()
		s.drained()
	}
}

// pieceLimit keeps acknowledgements of stdin steady when its reader is slow.
const pieceLimit = 64 << 10

// feed moves stdin from the channel to a process.
func feed(in *inlet, file *os.File, terminal bool) {
	for {
		piece, end, ok := in.next()
		switch {
		case !ok:
			return // abandon closes the file
		case end && terminal:
			if err := writeEOF(file); err != nil && !errors.Is(err, os.ErrClosed) {
				logf("terminal: %v", err)
			}
			in.end()
			return
		case end:
			file.Close()
			in.end()
			return
		}
		n, err := file.Write(piece[:min(len(piece), pieceLimit)])
		in.use(n)
		if err != nil { // EPIPE: nobody reads it any more
			if !terminal {
				file.Close()
			}
			in.breakOff()
			return
		}
	}
}
