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
	byPID    map[int]*process
	starting int         // starts under way, whose pid isn't in byPID yet
	early    map[int]end // children that ended during one of those
	living   bool        // there are processes, as far as the node was told
	changed  func(living bool)
}

// end is how a process ended.
type end struct {
	status syscall.WaitStatus
	usage  syscall.Rusage
}

func newReaper(changed func(living bool)) *reaper {
	r := &reaper{byPID: map[int]*process{}, early: map[int]end{}, changed: changed}
	r.born.L = &r.mu
	return r
}

// start runs fork and registers the process it made, so that an end before the registration isn't lost.
func (r *reaper) start(p *process, fork func() (int, error)) error {
	r.mu.Lock()
	r.starting++
	r.mu.Unlock()
	pid, err := fork()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting--
	if err == nil {
		p.pid = pid
		p.alive = true
		if e, ok := r.early[pid]; ok {
			p.alive = false
			go p.exited(e)
		} else {
			r.byPID[pid] = p
		}
		if !r.living {
			r.living = true
			r.changed(true)
		}
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
				r.changed(false)
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
	p := r.byPID[pid]
	if p == nil {
		if r.starting > 0 {
			r.early[pid] = e
		}
		return
	}
	delete(r.byPID, pid)
	p.alive = false
	go p.exited(e)
}

// signal reaches the process itself, never another one that got its pid.
func (r *reaper) signal(p *process, signal syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !p.alive {
		return syscall.ESRCH
	}
	return syscall.Kill(p.pid, signal)
}
