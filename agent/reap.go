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
)

// run never returns.
func (r *reaper) run() {
	for {
		r.mu.Lock()
		seen := r.starts
		r.mu.Unlock()
		// First only look, so that the pid stays taken until nobody can signal it any more.
		var info [16]uint64 // siginfo_t; si_pid is its fifth int
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, pAll, 0, uintptr(unsafe.Pointer(&info)), wExited|wNoWait|wAllKids, 0, 0)
		switch errno {
		case 0:
			r.collect(int(*(*int32)(unsafe.Pointer(&info[2]))))
		case syscall.ECHILD:
			r.mu.Lock()
			if r.living && r.starting == 0 && r.starts == seen {
				r.living = false
				r.notify()
			}
			for r.starts == seen {
				r.born.Wait()
			}
			r.mu.Unlock()
		case syscall.EINTR:
		default:
			logf("waitid: %v", errno)
		}
	}
}

func (r *reaper) collect(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var e end
	got, err := syscall.Wait4(pid, &e.status, syscall.WNOHANG|wAllKids, &e.usage)
	if err != nil || got != pid {
		return // a failed start took it itself
	}
	c := r.byPID[pid]
	if c == nil {
		if r.starting > 0 {
			r.early[pid] = e
		}
		return
	}
	delete(r.byPID, pid)
	c.alive = false
	go c.ended(e)
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
