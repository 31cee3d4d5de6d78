package main

import (
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Servers outside that the sandbox reaches by a name: the agent listens for them, at an address of the loopback that no program of the sandbox uses.

const (
	hostsFile = "/etc/hosts"
	// hostsMark ends the lines that are ours.
	hostsMark = "# outside"
	// waitingLimit is how many connections of a listener may wait to be taken.
	waitingLimit = 64
	// waitingTime is how long one waits, before it is reset.
	waitingTime = 15 * time.Second
)

// isOutsideName tells whether a name is one of small letters, digits, dots and dashes, that begins and ends with one of the former (the package regexp would add a quarter of a megabyte).
func isOutsideName(name string) bool {
	edges := strings.Trim(name, ".-")
	return edges == name && name != "" && len(name) <= 63 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") == ""
}

// outside is the range 127.77.0.0/16, for servers outside only.
var outside = netip.MustParsePrefix("127.77.0.0/16")

// outsiders gives each name its address, and the file of hosts a line for it.
type outsiders struct {
	mu    sync.Mutex
	names map[string]*outsider
	hosts string
}

type outsider struct {
	address netip.Addr
	users   int
}

var exposed = outsiders{names: map[string]*outsider{}, hosts: hostsFile}

// take gives the address of a name, the same for all who use it.
func (o *outsiders) take(name string) (netip.Addr, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	known := o.names[name]
	if known == nil {
		used := map[netip.Addr]bool{}
		for _, other := range o.names {
			used[other.address] = true
		}
		address := outside.Addr().Next()
		for used[address] {
			address = address.Next()
		}
		known = &outsider{address: address}
		o.names[name] = known
		if err := o.write(); err != nil {
			delete(o.names, name)
			return netip.Addr{}, err
		}
	}
	known.users++
	return known.address, nil
}

func (o *outsiders) leave(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	known := o.names[name]
	if known.users--; known.users > 0 {
		return
	}
	delete(o.names, name)
	if err := o.write(); err != nil {
		logf("%s keeps the name %s: %v", o.hosts, name, err)
	}
}

// write puts the lines of the names before those of others, of which the first counts. Called with the lock held.
func (o *outsiders) write() error {
	text, err := os.ReadFile(o.hosts)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	var lines strings.Builder
	for name, each := range o.names {
		lines.WriteString(each.address.String() + " " + name + " " + hostsMark + "\n")
	}
	for _, line := range strings.SplitAfter(string(text), "\n") {
		if !strings.HasSuffix(strings.TrimSpace(line), hostsMark) {
			lines.WriteString(line)
		}
	}
	return (&claimFile{Path: []byte(o.hosts), Content: []byte(lines.String())}).write()
}

// listening is what a channel of the kind "listen" has: the connections that nobody has taken yet.
type listening struct {
	mu      sync.Mutex
	next    uint32
	waiting map[uint32]*os.File // nil once it has ended
}

type listenArgs struct {
	named
	Channel uint32 `json:"channel"`
	Name    string `json:"name"`
	Port    uint16 `json:"port"`
}

type listenAnswer struct {
	Address string `json:"address"`
}

type incomingEvent struct {
	Event      string `json:"event"`
	Connection uint32 `json:"connection"`
}

// listen answers the request of that name: from now on connections to the name and port inside are told of, until the channel is closed.
func listen(l *link, args *listenArgs) (any, error) {
	if args.Port == 0 || !isOutsideName(args.Name) || args.Name == "localhost" {
		return nil, protocol("%q and port %d are no address to offer", args.Name, args.Port)
	}
	if _, err := netip.ParseAddr(args.Name); err == nil {
		return nil, protocol("%s is an address, and not a name", args.Name)
	}
	return l.openChannel(args.Channel, "listen", withStreams(0, false), func(c *channel) (any, error) {
		address, err := exposed.take(args.Name)
		if err != nil {
			return nil, failed(err, hostsFile)
		}
		listener, err := bound(netip.AddrPortFrom(address, args.Port))
		if err != nil {
			exposed.leave(args.Name)
			return nil, failed(asErrno(err), "")
		}
		c.listening = &listening{waiting: map[uint32]*os.File{}}
		c.onClose(func() {
			listener.Close()
			c.listening.end()
			exposed.leave(args.Name)
		})
		go c.incoming(listener)
		return listenAnswer{address.String()}, nil
	})
}

func bound(at netip.AddrPort) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err == nil {
		if err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err == nil {
			err = syscall.Listen(fd, waitingLimit)
		}
	}
	if err != nil {
		syscall.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), at.String()), nil
}

// incoming takes connections until the listener is closed.
func (c *channel) incoming(listener *os.File) {
	raw, err := listener.SyscallConn()
	for err == nil {
		connection := -1
		var refused error
		err = raw.Read(func(fd uintptr) bool {
			connection, _, refused = syscall.Accept4(int(fd), syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
			return refused != syscall.EAGAIN
		})
		switch {
		case err != nil:
		case refused == nil:
			c.arrived(connection)
		case refused != syscall.EINTR && refused != syscall.ECONNABORTED:
			err = refused
			c.finished(closedEvent{}, asErrno(err))
		}
	}
}

// arrived tells of a connection, which then waits to be taken.
func (c *channel) arrived(fd int) {
	if err := syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1); err != nil {
		logf("an accepted connection: %v", err)
	}
	connection := os.NewFile(uintptr(fd), "from inside")
	w := c.listening
	w.mu.Lock()
	if w.waiting == nil || len(w.waiting) >= waitingLimit {
		w.mu.Unlock()
		reset(connection)
		return
	}
	w.next++
	number := w.next
	w.waiting[number] = connection
	w.mu.Unlock()
	time.AfterFunc(waitingTime, func() {
		if late := w.take(number); late != nil {
			reset(late)
		}
	})
	c.link.event(c.id, mustJSON(incomingEvent{"incoming", number}))
}

// take gives a connection that waits, nil when it does no more.
func (w *listening) take(number uint32) *os.File {
	w.mu.Lock()
	defer w.mu.Unlock()
	connection := w.waiting[number]
	delete(w.waiting, number)
	return connection
}

func (w *listening) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, connection := range w.waiting {
		reset(connection)
	}
	w.waiting = nil
}

// reset closes a connection so that its peer does not take it for served.
func reset(connection *os.File) {
	if raw, err := connection.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
		})
	}
	connection.Close()
}

type acceptArgs struct {
	named
	Channel    uint32 `json:"channel"`
	Listener   uint32 `json:"listener"`
	Connection uint32 `json:"connection"`
	Window     int    `json:"window"`
}

// accept answers the request of that name: a connection that a listener has told of is relayed by the streams 0 and 1.
func accept(l *link, args *acceptArgs) (any, error) {
	from := l.channel(args.Listener)
	if from == nil || from.kind != "listen" || from.listening == nil {
		return nil, failed(syscall.ECONNABORTED, "")
	}
	return l.openChannel(args.Channel, "accept", withStreams(args.Window, true, streamOut), func(c *channel) (any, error) {
		connection := from.listening.take(args.Connection)
		if connection == nil {
			return nil, failed(syscall.ECONNABORTED, "")
		}
		c.onClose(func() { reset(connection) }) // nothing happens when both directions have ended
		go relay(c, connection)
		return nil, nil
	})
}
