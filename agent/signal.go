package main

import "syscall"

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

// signalTree reaches the process' group and every descendant that left it. A killing signal is repeated until nobody new is found, since
// a process may fork while it is being looked for.
func (p *process) signalTree(number syscall.Signal) error {
	err := syscall.Kill(-p.pid, number)
	seen := map[int]bool{}
	for {
		fresh := false
		for _, pid := range p.members() {
			if !seen[pid] {
				seen[pid] = true
				fresh = syscall.Kill(pid, number) == nil || fresh
			}
		}
		if fresh {
			err = nil
		}
		if !fresh || number != syscall.SIGKILL {
			return err
		}
	}
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
