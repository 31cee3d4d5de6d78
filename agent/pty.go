package main

import (
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// descriptors are both sides of what a process gets as 0, 1 and 2.
type descriptors struct {
	child    [3]uintptr
	inner    []int      // the child's ends, to be closed here after the start
	outputs  []*os.File // stdout, stderr; or the terminal alone
	input    *os.File   // stdin or the terminal; nil for /dev/null
	terminal *os.File
}

// openDescriptors makes pipes or a terminal.
func openDescriptors(args *startArgs, who *account) (*descriptors, error) {
	d := &descriptors{}
	if args.Pty != nil {
		return d, d.openTerminal(*args.Pty, who)
	}
	if args.Stdin {
		inner, outer, err := pipe(false)
		if err != nil {
			return nil, err
		}
		d.inner, d.input = append(d.inner, inner), outer
		d.child[0] = uintptr(inner)
	} else {
		d.child[0] = nullDevice
	}
	for i := 1; i <= 2; i++ {
		inner, outer, err := pipe(true)
		if err != nil {
			d.closeChild()
			d.closeOurs()
			return nil, err
		}
		d.inner, d.outputs = append(d.inner, inner), append(d.outputs, outer)
		d.child[i] = uintptr(inner)
	}
	return d, nil
}

// pipe returns the child's blocking end and ours, from which the runtime waits without a thread.
func pipe(output bool) (inner int, outer *os.File, err error) {
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return 0, nil, failed(err, "")
	}
	ours := ends[0]
	inner = ends[1]
	if !output {
		ours, inner = inner, ours
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_FCNTL, uintptr(inner), syscall.F_SETFL, 0); errno != 0 {
		briefClose(ours)
		briefClose(inner)
		return 0, nil, failed(errno, "")
	}
	return inner, os.NewFile(uintptr(ours), "pipe"), nil
}

// openTerminal makes a pseudo terminal that belongs to the user.
func (d *descriptors) openTerminal(size terminalSize, who *account) error {
	master, slave, err := newTerminal(size)
	if err != nil {
		return err
	}
	d.inner = []int{slave}
	d.terminal, d.outputs, d.input = master, []*os.File{master}, master
	d.child = [3]uintptr{uintptr(slave), uintptr(slave), uintptr(slave)}
	if who.uid != 0 {
		if err := syscall.Fchown(slave, int(who.uid), int(who.gid)); err != nil {
			d.closeChild()
			d.closeOurs()
			return failed(err, "terminal")
		}
	}
	return nil
}

// newTerminal opens both sides of a pseudo terminal.
func newTerminal(size terminalSize) (master *os.File, slave int, err error) {
	fd, err := syscall.Open("/dev/ptmx", syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, -1, failed(err, "/dev/ptmx")
	}
	var unlock, number int32
	err = ioctl(fd, syscall.TIOCSPTLCK, unsafe.Pointer(&unlock))
	if err == nil {
		err = ioctl(fd, syscall.TIOCGPTN, unsafe.Pointer(&number))
	}
	if err == nil {
		err = setSize(fd, size)
	}
	name := "/dev/pts/" + strconv.Itoa(int(number))
	if err == nil {
		slave, err = syscall.Open(name, syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
	}
	if err != nil {
		syscall.Close(fd)
		return nil, -1, failed(err, name)
	}
	return os.NewFile(uintptr(fd), "terminal"), slave, nil
}

func (d *descriptors) closeChild() {
	for _, fd := range d.inner {
		briefClose(fd)
	}
	d.inner = nil
}

func (d *descriptors) closeOurs() {
	for _, f := range d.outputs {
		f.Close()
	}
	if d.input != nil {
		d.input.Close()
	}
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

func setSize(fd int, size terminalSize) error {
	window := [4]uint16{size.Rows, size.Cols}
	return ioctl(fd, syscall.TIOCSWINSZ, unsafe.Pointer(&window))
}

// writeEOF ends the input of a terminal as ctrl-D does. A program that reads single keys (no ICANON) gets the character itself.
func writeEOF(terminal *os.File) error {
	raw, err := terminal.SyscallConn()
	if err != nil {
		return err
	}
	var mode syscall.Termios
	var errno error
	if err := raw.Control(func(fd uintptr) { errno = ioctl(int(fd), syscall.TCGETS, unsafe.Pointer(&mode)) }); err != nil {
		return err
	}
	if errno != nil {
		return errno
	}
	_, err = terminal.Write([]byte{mode.Cc[syscall.VEOF]})
	return err
}

type resizeArgs struct {
	named
	Channel uint32 `json:"channel"`
	Rows    uint16 `json:"rows"`
	Cols    uint16 `json:"cols"`
}

// resize answers the request of that name.
func resize(l *link, args *resizeArgs) (any, error) {
	p, err := l.processOf(args.Channel)
	if err != nil {
		return nil, err
	}
	if p.terminal == nil {
		return nil, failed(syscall.ENOTTY, "")
	}
	raw, err := p.terminal.SyscallConn()
	if err != nil {
		return nil, failed(syscall.ESRCH, "")
	}
	var errno error
	if err := raw.Control(func(fd uintptr) { errno = setSize(int(fd), terminalSize{args.Rows, args.Cols}) }); err != nil {
		return nil, failed(syscall.ESRCH, "") // the terminal is closed
	}
	if errno == nil {
		_ = p.signalTree(syscall.SIGWINCH) // gVisor tells nobody of the new size; whoever the signal does not concern ignores it
	}
	return nil, failed(errno, "")
}
