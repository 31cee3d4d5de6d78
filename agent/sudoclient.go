package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"
)

// sudo is the agent's binary in the role of sudo. It returns the exit code.
func sudo(args []string) int {
	complain := func(err error) int {
		fmt.Fprintf(os.Stderr, "sudo: %v\n", err)
		return 1
	}
	options, err := parseSudo(args, os.Environ())
	if err != nil {
		return complain(err)
	}
	if options.only != 0 {
		return sudoAlone(options.only)
	}
	c := &sudoClient{}
	defer c.restore()
	if err := c.open(&options.request); err != nil {
		c.restore()
		return complain(err)
	}
	if options.request.Background {
		return 0 // the agent keeps the command; only its end isn't waited for
	}
	code, signalled, err := c.wait()
	c.restore()
	if err != nil {
		return complain(err)
	}
	if signalled != 0 { // end the same way, so that the caller sees it
		signal.Reset()
		if err := syscall.Kill(os.Getpid(), signalled); err != nil {
			return complain(err)
		}
		time.Sleep(time.Second) // it reaches another thread
		return 128 + int(signalled)
	}
	return code
}

// sudoClient is one run. A command gets a terminal of its own when the caller has one, as with the real sudo's use_pty; the client relays it.
type sudoClient struct {
	socket int
	master *os.File
	input  bool             // the terminal is read, too
	saved  *syscall.Termios // of the caller's terminal, while it is raw
	shown  chan struct{}    // closed when all output of the terminal has been written
}

// open sends the request and waits until the command runs.
func (c *sudoClient) open(request *sudoRequest) error {
	socket, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.socket = socket
	if err := syscall.Connect(socket, &syscall.SockaddrUnix{Name: sudoAddress}); err != nil {
		return errors.New("this sandbox was created without sudo")
	}
	files := []int{0, 1, 2, -1}
	if files[3], err = syscall.Open(".", oPath|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0); err != nil {
		if files[3], err = syscall.Open("/", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0); err != nil {
			return err
		}
	}
	slave, err := c.terminal(files)
	if err != nil {
		return err
	}
	request.Terminal = c.master != nil
	request.Caller = caller{os.Getpid(), os.Getuid(), os.Getgid()}
	err = syscall.Sendmsg(socket, mustJSON(request), syscall.UnixRights(files...), nil, 0)
	if slave >= 0 {
		syscall.Close(slave)
	}
	if err != nil {
		return err
	}
	reply, err := c.receive()
	if err != nil {
		return err
	}
	if reply.Error != nil {
		if reply.Error.Code == "ENOENT" && len(request.Argv) > 0 {
			return fmt.Errorf("%s: command not found", request.Argv[0])
		}
		return reply.Error
	}
	return nil
}

// terminal replaces those of the descriptors that are a terminal by the slave of a new one.
func (c *sudoClient) terminal(files []int) (slave int, err error) {
	like := -1
	for fd := 2; fd >= 0; fd-- {
		var mode syscall.Termios
		if ioctl(fd, syscall.TCGETS, unsafe.Pointer(&mode)) == nil {
			like = fd
		}
	}
	if like < 0 {
		return -1, nil
	}
	var mode syscall.Termios
	if err := ioctl(like, syscall.TCGETS, unsafe.Pointer(&mode)); err != nil {
		return -1, err
	}
	c.master, slave, err = newTerminal(terminalSize{24, 80})
	if err != nil {
		return -1, err
	}
	c.input = like == 0
	inner := mode
	if !c.input {
		inner.Oflag &^= syscall.OPOST // the caller's terminal does it
	}
	if err := ioctl(slave, syscall.TCSETS, unsafe.Pointer(&inner)); err != nil {
		return -1, err
	}
	c.resize(like)
	for fd := 0; fd <= 2; fd++ {
		var ignored syscall.Termios
		if ioctl(fd, syscall.TCGETS, unsafe.Pointer(&ignored)) == nil {
			files[fd] = slave
		}
	}
	if c.input {
		c.saved = &mode
		raw := mode
		raw.Iflag &^= syscall.IGNBRK | syscall.BRKINT | syscall.PARMRK | syscall.ISTRIP | syscall.INLCR | syscall.IGNCR | syscall.ICRNL | syscall.IXON
		raw.Oflag &^= syscall.OPOST
		raw.Lflag &^= syscall.ECHO | syscall.ECHONL | syscall.ICANON | syscall.ISIG | syscall.IEXTEN
		raw.Cflag = raw.Cflag&^(syscall.CSIZE|syscall.PARENB) | syscall.CS8
		raw.Cc[syscall.VMIN], raw.Cc[syscall.VTIME] = 1, 0
		if err := ioctl(0, syscall.TCSETS, unsafe.Pointer(&raw)); err != nil {
			return -1, err
		}
		go func() { _, _ = io.Copy(c.master, os.Stdin) }() // ends with the process
	}
	output := os.Stdout
	if files[1] != slave {
		output = os.Stderr
	}
	c.shown = make(chan struct{})
	go func() {
		defer close(c.shown)
		_, _ = io.Copy(output, c.master) // EIO at the end
	}()
	return slave, nil
}

// resize gives the command's terminal the size of the caller's.
func (c *sudoClient) resize(like int) {
	var window [4]uint16
	if ioctl(like, syscall.TIOCGWINSZ, unsafe.Pointer(&window)) == nil {
		raw, err := c.master.SyscallConn()
		if err == nil {
			_ = raw.Control(func(fd uintptr) { _ = ioctl(int(fd), syscall.TIOCSWINSZ, unsafe.Pointer(&window)) })
		}
	}
}

// wait forwards signals until the command has ended.
func (c *sudoClient) wait() (code int, signalled syscall.Signal, err error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT,
		syscall.SIGALRM, syscall.SIGWINCH)
	go func() {
		for s := range signals {
			if s == syscall.SIGWINCH && c.master != nil {
				c.resize(0)
				continue
			}
			if n, ok := s.(syscall.Signal); ok && s != syscall.SIGWINCH {
				_ = syscall.Sendmsg(c.socket, mustJSON(sudoSignal{int(n)}), nil, nil, 0) // the command is over if this fails
			}
		}
	}()
	reply, err := c.receive()
	if err != nil {
		return 1, 0, err
	}
	if c.shown != nil {
		<-c.shown
	}
	if reply.Signal != nil {
		return 0, syscall.Signal(*reply.Signal), nil
	}
	if reply.Code == nil {
		return 1, 0, errors.New("the agent said nothing sensible")
	}
	return *reply.Code, 0, nil
}

func (c *sudoClient) receive() (reply sudoReply, err error) {
	packet := make([]byte, 64<<10)
	for {
		n, err := syscall.Read(c.socket, packet)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return reply, err
		}
		if n == 0 {
			return reply, errors.New("the agent hung up")
		}
		return reply, json.Unmarshal(packet[:n], &reply)
	}
}

// restore gives the caller's terminal its mode back.
func (c *sudoClient) restore() {
	if c.saved != nil {
		_ = ioctl(0, syscall.TCSETS, unsafe.Pointer(c.saved)) // nothing can be done about a terminal that is gone
		c.saved = nil
	}
}
