package main

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Two control group hierarchies of the guest's kernel, which has cgroup v1. They exist through the descriptors alone: their mounts are taken
// away again, so the guest doesn't see them. In each of them the sandbox has a group `box` without the agent.
var (
	box      = -1 // of the controller pids: limits and counts tasks; -1 where the kernel has no such thing
	tree     = -1 // of the controller cpuacct: has a group for each process that was started, with all that it started
	boxTasks = -1 // number of tasks in `box`
	boxUsage = -1 // CPU time of everything in `tree`, ns
)

func prepareGroups() (err error) {
	if box, err = boxOf("pids"); err != nil {
		return err
	}
	for _, s := range spawners {
		s.do(func() { err = writeAt(box, "tasks", "0") }) // 0 is the thread that writes
		if err != nil {
			return failed(err, "pids/tasks")
		}
	}
	if boxTasks, err = syscall.Openat(box, "pids.current", syscall.O_RDONLY|syscall.O_CLOEXEC, 0); err != nil {
		return failed(err, "pids.current")
	}
	if tree, err = boxOf("cpuacct"); err != nil {
		return err
	}
	if boxUsage, err = syscall.Openat(tree, "cpuacct.usage", syscall.O_RDONLY|syscall.O_CLOEXEC, 0); err != nil {
		return failed(err, "cpuacct.usage")
	}
	groups.stray, err = groups.take()
	return err
}

// boxOf makes the group `box` of a controller and returns its directory.
func boxOf(controller string) (int, error) {
	root, err := detachedMount(controller)
	if err != nil {
		return -1, err
	}
	defer syscall.Close(root)
	if err := syscall.Mkdirat(root, "box", 0o755); err != nil {
		return -1, failed(err, controller)
	}
	fd, err := syscall.Openat(root, "box", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	return fd, failed(err, controller)
}

func detachedMount(options string) (int, error) {
	dir := corralDir + "/group"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return -1, err
	}
	defer os.Remove(dir)
	if err := syscall.Mount("cgroup", dir, "cgroup", 0, options); err != nil {
		return -1, failed(err, "cgroup "+options)
	}
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if e := syscall.Unmount(dir, syscall.MNT_DETACH); e != nil {
		logf("%s: %v", dir, e)
	}
	return fd, failed(err, dir)
}

func writeAt(dir int, name, text string) error {
	fd, err := syscall.Openat(dir, name, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	_, err = syscall.Write(fd, []byte(text))
	return err
}

// taskCount is the number of tasks (threads) in the sandbox but the agent's.
func taskCount() (int, error) {
	var b [32]byte
	n, err := syscall.Pread(boxTasks, b[:], 0)
	if err != nil {
		return 0, failed(err, "pids.current")
	}
	count, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return count - len(spawners), err // the spawners are in it, too
}

// treeGroup is a group of `tree` that holds a started process and all it starts. Emptied ones are used again.
type treeGroup struct {
	dir   int
	tasks int // descriptor that moves the writing thread into the group
}

// groupStore are the groups nobody uses.
type groupStore struct {
	mu    sync.Mutex
	made  int
	clean []*treeGroup
	dirty []*treeGroup // not empty when they were given back: what was killed is still there, or a daemon lives on
	stray *treeGroup   // for what belongs to no started process
}

var groups groupStore

// take returns an empty group, nil where the kernel has none.
func (s *groupStore) take() (*treeGroup, error) {
	if tree < 0 {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.clean); n > 0 {
		g := s.clean[n-1]
		s.clean = s.clean[:n-1]
		return g, nil
	}
	if len(s.dirty) > 0 {
		g := s.dirty[0]
		s.dirty = s.dirty[1:]
		if len(g.pids()) == 0 {
			return g, nil
		}
		s.dirty = append(s.dirty, g) // the next time another is looked at
	}
	s.made++
	name := strconv.Itoa(s.made)
	if err := syscall.Mkdirat(tree, name, 0o755); err != nil {
		return nil, failed(err, name)
	}
	dir, err := syscall.Openat(tree, name, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, failed(err, name)
	}
	tasks, err := syscall.Openat(dir, "tasks", syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		syscall.Close(dir)
		return nil, failed(err, name)
	}
	return &treeGroup{dir, tasks}, nil
}

// give takes a group back; empty when it is known to be.
func (s *groupStore) give(g *treeGroup, empty bool) {
	if g == nil {
		return
	}
	empty = empty || len(g.pids()) == 0
	s.mu.Lock()
	defer s.mu.Unlock()
	if empty {
		s.clean = append(s.clean, g)
	} else {
		s.dirty = append(s.dirty, g)
	}
}

// enter moves the calling thread, and with it what it forks, into the group, or into the one of strays.
func (g *treeGroup) enter() error {
	if g == nil {
		g = groups.stray
	}
	if g == nil {
		return nil
	}
	return briefWriteAt(g.tasks, "0", 0)
}

// pids lists the processes of the group. A spawner stays in the group it entered last; the agent itself is never listed.
func (g *treeGroup) pids() (pids []int) {
	return pidsOf(g.dir)
}

// pidsOf lists the processes of a group, without the agent.
func pidsOf(dir int) (pids []int) {
	text, err := briefReadFile(dir, "cgroup.procs")
	if err != nil {
		logf("cgroup.procs: %v", err)
	}
	for _, line := range strings.Fields(text) {
		if pid, err := strconv.Atoi(line); err == nil && pid != selfPID {
			pids = append(pids, pid)
		}
	}
	return pids
}
