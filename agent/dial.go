package main

import (
	"errors"
	"net/netip"
	"os"
	"syscall"
	"unsafe"
)

type dialArgs struct {
	named
	Channel uint32 `json:"channel"`
	Host    string `json:"host"`
	Port    uint16 `json:"port"`
	Window  int    `json:"window"`
}

// dial answers the request of that name: a TCP connection inside the sandbox, relayed by the streams 0 and 1. Without a host it is whoever
// listens on the loopback, be it by IPv4 or only by IPv6.
func dial(l *link, args *dialArgs) (any, error) {
	hosts := []string{"127.0.0.1", "::1"}
	if args.Host != "" && args.Host != "localhost" {
		hosts = []string{args.Host}
	}
	if args.Port == 0 {
		return nil, protocol("port 0")
	}
	return l.openChannel(args.Channel, "dial", withStreams(args.Window, true, streamOut), func(c *channel) (any, error) {
		var first error
		for _, host := range hosts {
			address, err := netip.ParseAddr(host)
			if err != nil {
				return nil, protocol("host %q is no address", host)
			}
			connection, err := connect(c, netip.AddrPortFrom(address, args.Port))
			if err == nil {
				go relay(c, connection)
				return nil, nil
			}
			if first == nil {
				first = err
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				break
			}
		}
		return nil, failed(asErrno(first), "")
	})
}

// connect waits for the connection without a thread; closing the channel ends the wait.
func connect(c *channel, to netip.AddrPort) (*os.File, error) {
	family := syscall.AF_INET6
	var address syscall.Sockaddr = &syscall.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if to.Addr().Unmap().Is4() {
		family = syscall.AF_INET
		address = &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().Unmap().As4()}
	}
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	err = syscall.Connect(fd, address)
	connection := os.NewFile(uintptr(fd), to.String())
	c.onClose(func() { connection.Close() })
	if err == syscall.EINPROGRESS || err == syscall.EINTR {
		err = connected(connection)
	}
	if err != nil {
		connection.Close()
		return nil, err
	}
	return connection, nil
}

// connected waits for a connect that is under way.
func connected(connection *os.File) error {
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	result := 0
	err = raw.Write(func(fd uintptr) bool {
		var peer syscall.RawSockaddrAny
		size := uint32(unsafe.Sizeof(peer))
		if result, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR); err != nil || result != 0 {
			return true
		}
		_, _, errno := syscall.Syscall(syscall.SYS_GETPEERNAME, fd, uintptr(unsafe.Pointer(&peer)), uintptr(unsafe.Pointer(&size)))
		return errno != syscall.ENOTCONN
	})
	if err == nil && result != 0 {
		err = syscall.Errno(result)
	}
	return err
}

// relay moves bytes both ways until both have ended, each with a half-close.
func relay(c *channel, connection *os.File) {
	sent := make(chan error, 1)
	go func() { sent <- relayIn(c.in, connection) }()
	err := relayOut(c.out[streamOut], connection)
	c.out[streamOut].finish()
	if e := <-sent; err == nil {
		err = e
	}
	connection.Close()
	c.finished(closedEvent{}, err)
}

func relayIn(in *inlet, connection *os.File) error {
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	for {
		piece, end, ok := in.next()
		if !ok {
			return errChannelClosed
		}
		if end {
			in.end()
			return shutdownWrite(connection)
		}
		n := 0
		if e := raw.Write(func(fd uintptr) bool {
			n, err = briefWrite(fd, piece[:min(len(piece), pieceLimit)])
			return err != syscall.EAGAIN
		}); e != nil {
			err = e
		}
		if err != nil {
			in.breakOff()
			return asErrno(err)
		}
		in.use(n)
	}
}

func shutdownWrite(connection *os.File) error {
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	var errno error
	if err := raw.Control(func(fd uintptr) { errno = syscall.Shutdown(int(fd), syscall.SHUT_WR) }); err != nil {
		return err
	}
	if errno == syscall.ENOTCONN { // the other side has reset it
		return nil
	}
	return errno
}

func relayOut(out *outlet, connection *os.File) error {
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	want := firstRead
	for {
		piece, ok := out.reserve(want)
		if !ok {
			return errChannelClosed
		}
		n := 0
		if e := raw.Read(func(fd uintptr) bool {
			n, err = briefRead(fd, piece)
			return err != syscall.EAGAIN
		}); e != nil {
			return asErrno(e)
		}
		if err != nil {
			return asErrno(err)
		}
		if n == 0 {
			return nil
		}
		out.commit(n)
		if n == len(piece) && want < bulkRead {
			want *= 4
		}
	}
}
