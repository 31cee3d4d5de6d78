package main

import (
	"syscall"
	"unsafe"
)

// openFiles is how many files a process may have open at first, as the host's spec of a member says. Go raises the agent's own and would take it
// back in each child.
const openFiles = 65536

// program is what a child becomes. Everything in it is ready for the kernel, since a child that shares its parent's memory may not allocate.
type program struct {
	path     *byte
	argv     []*byte
	env      []*byte
	dir      *byte
	files    [3]uintptr
	terminal bool // descriptor 0 becomes the controlling terminal
	identity bool // uid, gid and groups are not what the agent has
	uid, gid uint32
	groups   []uint32
	errno    syscall.Errno // why the child did not become it; written by the child
}

// newProgram fails with EINVAL when a text holds a NUL, and with EBADF for descriptors that the child's own 0, 1 and 2 would replace.
func newProgram(path string, argv, env []string, dir string, files [3]uintptr) (*program, error) {
	p := &program{files: files}
	for _, fd := range files {
		if fd <= 2 {
			return nil, syscall.EBADF
		}
	}
	var err error
	if p.path, err = syscall.BytePtrFromString(path); err != nil {
		return nil, err
	}
	if p.dir, err = syscall.BytePtrFromString(dir); err != nil {
		return nil, err
	}
	if p.argv, err = syscall.SlicePtrFromStrings(argv); err != nil {
		return nil, err
	}
	p.env, err = syscall.SlicePtrFromStrings(env)
	return p, err
}

// vfork makes a child that runs on this thread's stack while its parent is stopped, until it executes a program or ends.
func vfork() (pid, errno uintptr)

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// start makes a process of the program in a session of its own and returns its pid.
//
// It is what syscall.ForkExec does, without 60 system calls of the 75 that takes. Go takes back the handler of each signal in the child, which the
// kernel does anyway when the program is executed; here signals stay blocked until just before. And it hears of failures through a pipe, where
// memory that both share will do.
func (p *program) start() (int, error) {
	pid, errno := p.fork()
	afterFork()
	if errno != 0 {
		return 0, syscall.Errno(errno)
	}
	if p.errno != 0 {
		for {
			if _, err := syscall.Wait4(int(pid), nil, 0, nil); err != syscall.EINTR {
				break
			}
		}
		return 0, p.errno
	}
	return int(pid), nil
}

// fork returns in the parent alone, at once: until then the child has been using this frame.
//
//go:noinline
//go:norace
//go:nocheckptr
func (p *program) fork() (pid, errno uintptr) {
	var (
		err   syscall.Errno
		fd    uintptr
		count uintptr
		list  unsafe.Pointer
		none  uint64 // an empty set of signals
	)
	count = uintptr(len(p.groups))
	if count > 0 {
		list = unsafe.Pointer(&p.groups[0])
	}
	// From here on nothing may allocate, or call what might need more stack.
	beforeFork()
	pid, errno = vfork()
	if pid != 0 || errno != 0 {
		return pid, errno
	}

	if _, _, err = syscall.RawSyscall(syscall.SYS_SETSID, 0, 0, 0); err != 0 {
		goto failed
	}
	if p.identity {
		if _, _, err = syscall.RawSyscall(syscall.SYS_SETGROUPS, count, uintptr(list), 0); err != 0 {
			goto failed
		}
		if _, _, err = syscall.RawSyscall(syscall.SYS_SETGID, uintptr(p.gid), 0, 0); err != 0 {
			goto failed
		}
		if _, _, err = syscall.RawSyscall(syscall.SYS_SETUID, uintptr(p.uid), 0, 0); err != 0 {
			goto failed
		}
	}
	if _, _, err = syscall.RawSyscall(syscall.SYS_CHDIR, uintptr(unsafe.Pointer(p.dir)), 0, 0); err != 0 {
		goto failed
	}
	for fd = 0; fd < 3; fd++ {
		if _, _, err = syscall.RawSyscall(syscall.SYS_DUP3, p.files[fd], fd, 0); err != 0 {
			goto failed
		}
	}
	if p.terminal {
		if _, _, err = syscall.RawSyscall(syscall.SYS_IOCTL, 0, syscall.TIOCSCTTY, 1); err != 0 {
			goto failed
		}
	}
	_, _, err = syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, sigSetMask, uintptr(unsafe.Pointer(&none)), 0, unsafe.Sizeof(none), 0, 0)
	if err != 0 {
		goto failed
	}
	_, _, err = syscall.RawSyscall(syscall.SYS_EXECVE, uintptr(unsafe.Pointer(p.path)), uintptr(unsafe.Pointer(&p.argv[0])), uintptr(unsafe.Pointer(&p.env[0])))
failed:
	p.errno = err
	for {
		syscall.RawSyscall(syscall.SYS_EXIT, 127, 0, 0)
	}
}

const sigSetMask = 2
