package main

import (
	"runtime"
	"syscall"
	"unsafe"
)

// spawner starts processes on a thread of its own. What the kernel keeps for each thread, a child inherits from it: the CPUs it may use, its
// limited pids group, no_new_privs and the bounding set. So none of that costs a start anything, and the agent's other threads stay free of it:
// a fork bomb that has used up the group can't keep the agent from working.
type spawner struct {
	work chan func()
}

// newSpawner starts the thread, which lives as long as the agent.
func newSpawner() *spawner {
	s := &spawner{work: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for f := range s.work {
			f()
		}
	}()
	return s
}

// do runs f on the spawner's thread and waits for it.
func (s *spawner) do(f func()) {
	done := make(chan struct{})
	s.work <- func() { defer close(done); f() }
	<-done
}

// spawn starts a program, in a group.
func (s *spawner) spawn(g *treeGroup, p *program) (pid int, err error) {
	s.do(func() {
		if err = g.enter(); err == nil {
			pid, err = p.start()
		}
	})
	return pid, err
}

// rootSpawner starts what runs as root, userSpawner everything else.
var (
	rootSpawner, userSpawner *spawner
	spawners                 []*spawner
)

func startSpawners() {
	rootSpawner, userSpawner = newSpawner(), newSpawner()
	spawners = []*spawner{rootSpawner, userSpawner}
}

func spawnerFor(uid uint32) *spawner {
	if uid == 0 {
		return rootSpawner
	}
	return userSpawner
}

const (
	prCapbsetDrop   = 24
	prSetNoNewPrivs = 38
)

// userCapabilities are what a program of an ordinary user could at most gain: the set container engines grant by default.
// CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP.
const userCapabilities = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<13 | 1<<18 | 1<<27 | 1<<29 | 1<<31

// confineUsers takes the privileges away that children of the user spawner must not get.
func confineUsers() {
	userSpawner.do(func() {
		for c := uintptr(0); c < 64; c++ {
			if userCapabilities>>c&1 == 1 {
				continue
			}
			if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prCapbsetDrop, c, 0); errno == syscall.EINVAL {
				break // beyond the last one this kernel has
			} else if errno != 0 {
				logf("capability %d stays in the bounding set: %v", c, errno)
			}
		}
		if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0, 0); errno != 0 {
			logf("no_new_privs: %v", errno)
		}
	})
}

// limitCPUs makes children see and use only the first n CPUs.
func limitCPUs(n int) error {
	var set [128]uint64 // 8192 CPUs
	for c := 0; c < n && c < len(set)*64; c++ {
		set[c/64] |= 1 << (c % 64)
	}
	for _, s := range spawners {
		var errno syscall.Errno
		s.do(func() {
			_, _, errno = syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(set), uintptr(unsafe.Pointer(&set)))
		})
		if errno != 0 {
			return failed(errno, "")
		}
	}
	return nil
}
