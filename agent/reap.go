package main

import (
	"sync"
	"syscall"
	"unsafe"
)

// reaper collects every child: the processes that were started and the orphans that the kernel hands to init. It sleeps in waitid, without
// signals or timers, and when there are no children at all it waits for the next start.
type reaper struct {
	mu       sync.Mutex
	born     sync.Cond
	starts   int // starts so far
	byPID    map[int]*child
	starting int           // starts under way, whose pid isn't in byPID yet
	early    map[int]end   // children that ended during one of those
	living   bool          // there are processes
	changed  chan struct{} // gets a token at each start, and when the last process is gone
}

// child is a process that was started, until it ends.
type child struct {
	pid   int
	alive bool // guarded by the reaper: the pid is still this process'
	ended func(end)
}

// end is how a process ended.
type end struct {
	status syscall.WaitStatus
	usage  syscall.Rusage
}

func newReaper() *reaper {
	r := &reaper{byPID: map[int]*child{}, early: map[int]end{}, changed: make(chan struct{}, 1)}
	r.born.L = &r.mu
	return r
}

// start runs fork and registers the child it made, so that an end before the registration isn't lost.
func (r *reaper) start(c *child, fork func() (int, error)) error {
	r.mu.Lock()
	r.starting++
	r.mu.Unlock()
	pid, err := fork()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting--
	if err == nil {
		c.pid = pid
		if e, ok := r.early[pid]; ok {
			go c.ended(e)
		} else {
			c.alive = true
			r.byPID[pid] = c
		}
		r.living = true
		r.notify()
	}
	if r.starting == 0 {
		clear(r.early)
	}
	r.starts++
	r.born.Broadcast()
	return err
}

// Arguments of waitid.
const (
	pAll     = 0
	wExited  = 4
	wNoWait  = 0x1000000
	wAllKids = 0x40000000 // __WALL
	wNoHang  = 1
)

// run never returns.
func (r *reaper) run() {
	for {
		r.mu.Lock()
		seen := r.starts
		r.mu.Unlock()
		pid, errno := look(0)
		if errno == 0 && r.collect(pid, seen) {
			errno = syscall.ECHILD
		}
		switch errno {
		case 0, syscall.EINTR:
		case syscall.ECHILD:
			r.childless(seen)
			r.mu.Lock()
			for r.starts == seen {
				r.born.Wait()
			}
			r.mu.Unlock()
		default:
			logf("waitid: %v", errno)
		}
	}
}

// look waits for a child that has ended and leaves it there, so that its pid stays taken until nobody can signal it any more.
// With wNoHang it does not wait, and returns 0 when all children live.
func look(flags uintptr) (pid int, errno syscall.Errno) {
	var info [16]uint64 // siginfo_t; si_pid is its fourth int
	wait := syscall.Syscall6
	if flags&wNoHang != 0 {
		wait = syscall.RawSyscall6
	}
	_, _, errno = wait(syscall.SYS_WAITID, pAll, 0, uintptr(unsafe.Pointer(&info)), wExited|wNoWait|wAllKids|flags, 0, 0)
	return int(*(*int32)(unsafe.Pointer(&info[2]))), errno
}

// childless notes that there were no children when so many starts were over.
func (r *reaper) childless(seen int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.living && r.starting == 0 && r.starts == seen {
		r.living = false
		r.notify()
	}
}

// collect takes a child that has ended. It tells whether there are no others, if it knows.
func (r *reaper) collect(pid, seen int) (alone bool) {
	c, e := r.take(pid)
	if c == nil {
		return false
	}
	// Whoever is told of the end wants to know whether anything lives on.
	if _, errno := look(wNoHang); errno == syscall.ECHILD {
		r.childless(seen)
		alone = true
	}
	go c.ended(e)
	return alone
}

// take reaps a child and returns it, or nil when it is nobody's or not registered yet.
func (r *reaper) take(pid int) (*child, end) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var e end
	got, _, errno := syscall.RawSyscall6(syscall.SYS_WAIT4, uintptr(pid), uintptr(unsafe.Pointer(&e.status)), syscall.WNOHANG|wAllKids, uintptr(unsafe.Pointer(&e.usage)), 0, 0)
	if errno != 0 || int(got) != pid {
		return nil, e // a failed start took it itself
	}
	c := r.byPID[pid]
	if c == nil {
		if r.starting > 0 {
			r.early[pid] = e
		}
		return nil, e
	}
	delete(r.byPID, pid)
	c.alive = false
	return c, e
}

func (r *reaper) notify() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// isLiving tells whether there are processes other than the agent.
func (r *reaper) isLiving() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.living
}

// signal reaches the process itself, never another one that got its pid.
func (r *reaper) signal(c *child, signal syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !c.alive {
		return syscall.ESRCH
	}
	return syscall.Kill(c.pid, signal)
}
