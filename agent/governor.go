package main

import (
	"strconv"
	"syscall"
)

// governor holds the sandbox to its number of tasks (processes and their threads).
//
// The kernel of gVisor 20240729 can't do it alone. Its pids controller is asked at random for about one fork in seven, since a task's groups are
// in a map of which only the first is charged (Task.chargeLocked; unchanged in 2026). RLIMIT_NPROC is exact, but doesn't bind root with CAP_SYS_ADMIN.
// So both are set, and what grows beyond the limit all the same is killed, by process group.
var governor taskGovernor

type taskGovernor struct {
	limit int // 0 for none
}

// runawayFactor is how many times the limit is taken as the sign of a bomb that has a group for each process. Then everything is killed at once.
const runawayFactor = 4

const rlimitNproc = 6

// limitTasks sets the limit, 0 for none. It is called once.
func (g *taskGovernor) limitTasks(n int) error {
	if n == 0 {
		return nil
	}
	if box >= 0 {
		if err := writeAt(box, "pids.max", strconv.Itoa(n+len(spawners))); err != nil {
			return failed(err, "pids.max")
		}
	}
	if err := syscall.Setrlimit(rlimitNproc, &syscall.Rlimit{Cur: uint64(n), Max: uint64(n)}); err != nil {
		return failed(err, "RLIMIT_NPROC")
	}
	g.limit = n
	return nil
}

// check kills when there are too many tasks. It tells whether they have come near that.
func (g *taskGovernor) check() (near bool) {
	if g.limit == 0 || box < 0 {
		return false
	}
	n, err := taskCount()
	if err != nil {
		logf("%v", err)
		return false
	}
	if n <= g.limit+g.limit/8 { // refused forks are better than killed processes, where refusals work
		return n > g.limit/2
	}
	victim := -1 // everything but init
	if n < runawayFactor*g.limit {
		victim = -largestGroup()
	}
	killGroups(func() []int {
		if left, err := taskCount(); err == nil && left > g.limit/2 {
			return []int{victim}
		}
		return nil
	})
	logf("%d tasks are more than the limit of %d: killed the process group %d", n, g.limit, -victim)
	return true
}

// largestGroup is the process group with the most processes.
func largestGroup() (largest int) {
	sizes := processGroups(pidsOf(box))
	for group, size := range sizes {
		if size > sizes[largest] {
			largest = group
		}
	}
	return largest
}
