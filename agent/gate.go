package main

import (
	"os"
	"syscall"
)

// gate waits for one kind of readiness of a descriptor.
//
// The runtime asks for both kinds at once. Of a socket of the host's, gVisor then also hears that the peer has taken a packet, and wakes the agent for it: as often as there was something to do.
// So a descriptor of the kernel's that watches for one kind (epoll) is what the runtime waits for.
type gate struct {
	epoll  int
	socket int
	events uint32
	file   *os.File
	raw    syscall.RawConn
}

// newGate makes one that is open: it watches from the start. One that isn't watches only while somebody is in wait.
func newGate(socket int, name string, events uint32, open bool) (*gate, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	g := &gate{epoll: fd, socket: socket, events: events, file: os.NewFile(uintptr(fd), name)}
	if g.raw, err = g.file.SyscallConn(); err != nil {
		return nil, err
	}
	if open {
		err = g.watch()
	}
	return g, err
}

func (g *gate) watch() error {
	return syscall.EpollCtl(g.epoll, syscall.EPOLL_CTL_ADD, g.socket, &syscall.EpollEvent{Events: g.events, Fd: int32(g.socket)})
}

// wait calls try until it is true, each time the descriptor may be ready. It doesn't tell of an event that try was too late for.
func (g *gate) wait(try func() bool) error {
	return g.raw.Read(func(uintptr) bool {
		for !try() {
			// The kernel tells of an event only when none is left that was told of: this takes them back.
			if !briefReady(g.epoll) {
				return false
			}
		}
		return true
	})
}

// once waits like wait, but watches only meanwhile.
func (g *gate) once(try func() bool) error {
	if try() {
		return nil
	}
	if err := g.watch(); err != nil {
		return err
	}
	defer syscall.EpollCtl(g.epoll, syscall.EPOLL_CTL_DEL, g.socket, nil)
	return g.wait(try)
}
