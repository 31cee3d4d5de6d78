package main

import (
	"syscall"
	"time"
)

type signalArgs struct {
	named
	Channel uint32 `json:"channel"`
	Signal  int    `json:"signal"`
	To      string `json:"to"`
}

// sendSignal answers the request `signal`.
func sendSignal(l *link, args *signalArgs) (any, error) {
	p, err := l.processOf(args.Channel)
	if err != nil {
		return nil, err
	}
	if args.Signal < 0 || args.Signal > 64 {
		return nil, protocol("signal %d is not in 0 to 64", args.Signal)
	}
	number := syscall.Signal(args.Signal)
	switch args.To {
	case "process":
		err = children.signal(&p.child, number)
	case "group":
		err = syscall.Kill(-p.pid, number)
	case "tree":
		err = p.signalTree(number)
	default:
		err = protocol("to is %q, not process, group or tree", args.To)
	}
	return nil, failed(err, "")
}

// processOf finds the process of a channel that has been opened.
func (l *link) processOf(id uint32) (*process, error) {
	c := l.channel(id)
	if c == nil || c.kind != "process" {
		return nil, failed(syscall.ESRCH, "")
	}
	<-c.ready
	if c.err != nil {
		return nil, failed(syscall.ESRCH, "")
	}
	return c.process, nil
}

// signalTree reaches the process' group and every descendant that left it.
func (p *process) signalTree(number syscall.Signal) error {
	if number == syscall.SIGKILL {
		return p.killTree()
	}
	err := syscall.Kill(-p.pid, number)
	for _, pid := range p.members() {
		if group, e := syscall.Getpgid(pid); e == nil && group == p.pid && err == nil {
			continue // has it already
		}
		if syscall.Kill(pid, number) == nil {
			err = nil
		}
	}
	return err
}

// killTree leaves nothing of the tree.
func (p *process) killTree() error {
	found := false
	killGroups(func() (targets []int) {
		for group := range processGroups(p.members()) {
			if group != selfGroup {
				targets = append(targets, -group)
			}
		}
		if !found && syscall.Kill(-p.pid, 0) == nil { // without groups of `tree` the process itself is not among its members
			targets = append(targets, -p.pid)
		}
		found = found || len(targets) > 0
		return targets
	})
	if !found {
		return syscall.ESRCH
	}
	return nil
}

// A killing is repeated this often, this long after each other.
const (
	killRounds = 500
	killPause  = 2 * time.Millisecond
)

// killGroups kills the process groups that targets lists, again and again until it lists none: in gVisor a process that is in the middle of a fork
// when it is killed still gets its child, which nobody has killed then.
func killGroups(targets func() []int) {
	for range [killRounds]struct{}{} {
		groups := targets()
		if len(groups) == 0 {
			return
		}
		for _, group := range groups {
			if err := syscall.Kill(group, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
				logf("kill %d: %v", group, err)
			}
		}
		time.Sleep(killPause)
	}
	logf("something resists being killed")
}

// processGroups counts the members of each process group.
func processGroups(pids []int) map[int]int {
	sizes := map[int]int{}
	for _, pid := range pids {
		if group, err := syscall.Getpgid(pid); err == nil && group > 0 {
			sizes[group]++
		}
	}
	return sizes
}

// members lists what the process started and what that started, itself included. Without groups, those that lost their parents are not found.
func (p *process) members() []int {
	if p.group != nil {
		return p.group.pids()
	}
	return descendants(p.pid)
}

// descendants walks /proc for the children of a process and theirs.
func descendants(root int) (pids []int) {
	children := map[int][]int{}
	for _, pid := range allPIDs() {
		if stat, ok := readStat(pid); ok {
			children[stat.ppid] = append(children[stat.ppid], pid)
		}
	}
	queue := []int{root}
	for len(queue) > 0 {
		queue = append(queue[1:], children[queue[0]]...)
		if len(queue) > 0 {
			pids = append(pids, queue[0])
		}
	}
	return pids
}
