package main

import (
	"syscall"
)

// nothingName is the name under which the agent's own program ends at once.
const nothingName = "nothing"

// warm starts processes that do nothing, before the claim. The sandbox's kernel keeps what it made for them (a process of the host for each
// address space) for the next ones, and all code on the way of a start has been read: the first command of the sandbox finds it ready.
func warm(_ *link, _ *nothing) (any, error) {
	if claimed.Load() {
		return nil, failed(syscall.EALREADY, "")
	}
	for _, s := range spawners {
		if err := startNothing(s); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func startNothing(s *spawner) error {
	group, err := groups.take()
	if err != nil {
		return err
	}
	defer groups.give(group, false)
	ended := make(chan end, 1)
	c := &child{ended: func(e end) { ended <- e }}
	program, err := newProgram(agentCopy, []string{nothingName}, nil, "/", [3]uintptr{nullDevice, nullDevice, nullDevice})
	if err != nil {
		return err
	}
	if err := children.start(c, func() (int, error) { return s.spawn(group, program) }); err != nil {
		return failed(err, nothingName)
	}
	if e := <-ended; !e.status.Exited() || e.status.ExitStatus() != 0 {
		return failed(syscall.ECHILD, nothingName)
	}
	return nil
}
