package main

import (
	"errors"
	"os"
	"path"
	"sync"
	"syscall"
	"time"
)

// process is a command that a channel started, and what is known of it until the channel is closed.
type process struct {
	channel *channel
	id      string
	child
	started time.Time
	group   *treeGroup

	input    *os.File // stdin or terminal, when stream 0 exists
	terminal *os.File // the master side, or nil

	mu      sync.Mutex
	sources []*source
	pending int // what the exit event waits for: the end, and each source drained
	status  *end
	seconds float64
}

type terminalSize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

type startArgs struct {
	named
	Channel uint32        `json:"channel"`
	ID      string        `json:"id"`
	Argv    [][]byte      `json:"argv"`
	Env     [][]byte      `json:"env"`
	Cwd     []byte        `json:"cwd"`
	User    *string       `json:"user"`
	Pty     *terminalSize `json:"pty"`
	Stdin   bool          `json:"stdin"`
	Window  int           `json:"window"`
}

type startAnswer struct {
	PID int `json:"pid"`
}

// exitEvent is how a process ended. Below the two offsets lies everything that could be read when it did.
type exitEvent struct {
	Event   string  `json:"event"`
	Code    *int    `json:"code"`
	Signal  *int    `json:"signal"`
	Core    bool    `json:"core"`
	Stdout  uint64  `json:"stdout"`
	Stderr  uint64  `json:"stderr"`
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu"`
}

// start answers the request of that name.
func start(l *link, args *startArgs) (any, error) {
	outs := []uint16{streamOut, streamErr}
	if args.Pty != nil {
		outs = outs[:1]
	}
	return l.openChannel(args.Channel, "process", withStreams(args.Window, args.Stdin, outs...), func(c *channel) (any, error) {
		p := &process{channel: c, id: args.ID, pending: 1 + len(outs)}
		p.ended = p.exited
		c.mu.Lock()
		c.process = p
		c.mu.Unlock()
		if err := p.start(args); err != nil {
			return nil, err
		}
		c.onClose(p.abandon)
		return startAnswer{p.pid}, nil
	})
}

// command is a program ready to be started: everything a start needs but its descriptors.
type command struct {
	who     *account
	program string
	argv    []string
	env     []string
	cwd     string
}

// newCommand checks the arguments of a start and resolves user, directory, environment and program.
func newCommand(args *startArgs) (*command, error) {
	if len(args.Argv) == 0 || len(args.Argv[0]) == 0 {
		return nil, protocol("argv is empty")
	}
	c := &command{cwd: "/"}
	for _, a := range args.Argv {
		c.argv = append(c.argv, string(a))
	}
	user := ""
	if args.User != nil {
		user = *args.User
	}
	var err error
	if c.who, err = lookUser(user); err != nil {
		return nil, err
	}
	if c.env, err = environ(c.who, args.Pty != nil, defaultEnv(), args.Env); err != nil {
		return nil, err
	}
	if args.Cwd != nil {
		c.cwd = string(args.Cwd)
	}
	if !path.IsAbs(c.cwd) {
		return nil, protocol("cwd %q is not absolute", c.cwd)
	}
	c.program, err = findProgram(c.argv[0], variable(c.env, "PATH"), c.cwd, c.who)
	return c, err
}

// spawn starts the command with these descriptors as 0, 1, 2. Descriptor 0 becomes its terminal if asked.
func (c *command) spawn(g *treeGroup, files [3]uintptr, terminal bool) (int, error) {
	p, err := newProgram(c.program, c.argv, c.env, c.cwd, files)
	if err != nil {
		return 0, c.explain(err)
	}
	p.terminal = terminal
	p.uid, p.gid, p.groups = c.who.uid, c.who.gid, c.who.groups
	p.identity = !agentIsPlainRoot || p.uid != 0 || p.gid != 0 || len(p.groups) > 0
	pid, err := spawnerFor(c.who.uid).spawn(g, p)
	return pid, c.explain(err)
}

// explain says whether the directory or the program was at fault: a failed start tells only an errno.
func (c *command) explain(err error) error {
	if err == nil {
		return nil
	}
	var st syscall.Stat_t
	if e := syscall.Stat(c.cwd, &st); e != nil {
		return failed(e, c.cwd)
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return failed(syscall.ENOTDIR, c.cwd)
	}
	if errors.Is(err, syscall.EACCES) && !c.who.may(&st, 1) {
		return failed(err, c.cwd)
	}
	if errors.Is(err, syscall.EINVAL) { // a NUL in argv
		return protocol("argv or cwd has a NUL byte")
	}
	return failed(err, c.argv[0])
}

func (p *process) start(args *startArgs) error {
	c, err := newCommand(args)
	if err != nil {
		return err
	}
	d, err := openDescriptors(args, c.who)
	if err != nil {
		return err
	}
	if err := refreshMemory(time.Second); err != nil {
		logf("%v", err)
	}
	p.group, err = groups.take()
	if err == nil {
		p.started = time.Now()
		err = children.start(&p.child, func() (int, error) { return c.spawn(p.group, d.child, args.Pty != nil) })
	}
	d.closeChild()
	if err != nil {
		d.closeOurs()
		groups.give(p.group, false)
		return err
	}
	running.add(p)
	p.attach(d)
	return nil
}

// attach starts moving bytes between the process and its channel.
func (p *process) attach(d *descriptors) {
	for i, file := range d.outputs {
		s := &source{file: file, out: p.channel.out[streamOut+i], drained: p.drained}
		p.mu.Lock()
		p.sources = append(p.sources, s)
		ended := p.status != nil
		p.mu.Unlock()
		if ended {
			s.processEnded()
		}
		go s.pump()
	}
	p.terminal = d.terminal
	if p.channel.in != nil {
		p.input = d.input
		go feed(p.channel.in, d.input, d.terminal != nil)
	}
}

// exited is called once, when the process has been reaped.
func (p *process) exited(e end) {
	p.mu.Lock()
	p.status = &e
	p.seconds = time.Since(p.started).Seconds()
	sources := p.sources
	p.mu.Unlock()
	for _, s := range sources {
		s.processEnded()
	}
	p.drained()
}

// drained is called once by each source, when everything that was readable at the process' end has been read, and for the end itself.
func (p *process) drained() {
	p.mu.Lock()
	p.pending--
	last := p.pending == 0
	p.mu.Unlock()
	if last {
		heart.settle()
		p.channel.announce(p.exitEvent())
	}
}

func (p *process) exitEvent() exitEvent {
	status := p.status.status
	e := exitEvent{Event: "exit", Seconds: p.seconds, CPU: seconds(p.status.usage.Utime) + seconds(p.status.usage.Stime)}
	if status.Signaled() {
		signal := int(status.Signal())
		e.Signal, e.Core = &signal, status.CoreDump()
	} else {
		code := status.ExitStatus()
		e.Code = &code
	}
	e.Stdout = p.sources[0].mark
	if len(p.sources) > 1 {
		e.Stderr = p.sources[1].mark
	}
	return e
}

func seconds(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

// abandon kills the process with everything it started, if it still runs, and stops moving its bytes. What one that has ended left behind, a daemon,
// lives on: it was told to by being put into the background.
func (p *process) abandon() {
	p.mu.Lock()
	ended := p.status != nil
	p.mu.Unlock()
	if !ended {
		if err := p.signalTree(syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			logf("%s: %v", p.id, err)
		}
	}
	// When nothing lives at all it is known without looking.
	gone := ended && !children.isLiving()
	for _, s := range p.sources {
		s.file.Close()
	}
	if p.input != nil {
		p.input.Close()
	}
	running.remove(p)
	groups.give(p.group, gone)
}

// runningSet are the processes of open channels.
type runningSet struct {
	mu  sync.Mutex
	all map[*process]struct{}
}

var running = runningSet{all: map[*process]struct{}{}}

func (r *runningSet) add(p *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[p] = struct{}{}
}

func (r *runningSet) remove(p *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, p)
}

// owners tells which of them each living process belongs to.
func (r *runningSet) owners() map[int]*process {
	r.mu.Lock()
	all := make([]*process, 0, len(r.all))
	for p := range r.all {
		all = append(all, p)
	}
	r.mu.Unlock()
	owners := map[int]*process{}
	for _, p := range all {
		for _, pid := range p.members() {
			owners[pid] = p
		}
	}
	return owners
}
