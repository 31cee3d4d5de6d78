package main

import (
	"sync"
	"syscall"
	"time"
)

// Intervals of the pulse: soon after something was started, often while processes work, once a second while they only wait.
const (
	firstPulse = 50 * time.Millisecond
	busyPulse  = 100 * time.Millisecond
	nearPulse  = 20 * time.Millisecond // when there are many tasks
	lastPulse  = time.Second
	// surePulses is after how many silent pulses the pulse looks anyway: processor time is counted coarsely.
	surePulses = 10
)

// pulse watches the sandbox while processes live: it tells the node when there are none any more or some again, and which ports are listened on,
// and keeps /proc/meminfo fresh. A pulse in which nothing has used the processor does nothing but notice that. Without processes there is none.
type pulse struct {
	link *link

	mu     sync.Mutex // a hello repeats what was told
	living bool
	open   map[uint16]string // listening ports, with the name of who listens

	looked time.Time
	due    bool   // something may have changed since
	used   string // CPU time at the last look
	silent int
}

type activityEvent struct {
	Event     string `json:"event"`
	Processes int    `json:"processes"`
}

type portEvent struct {
	Event   string `json:"event"`
	Port    uint16 `json:"port"`
	Open    bool   `json:"open"`
	Process string `json:"process"`
}

func newPulse(l *link) *pulse { return &pulse{link: l, open: map[uint16]string{}} }

// run never returns.
func (p *pulse) run() {
	timer := time.NewTimer(lastPulse)
	timer.Stop()
	wait := firstPulse
	for {
		select {
		case <-children.changed:
			wait = firstPulse
			if !children.isLiving() {
				p.settle()
				timer.Stop() // until the next start
				continue
			}
		case now := <-timer.C:
			living := children.isLiving()
			p.tellActivity(living)
			worked := p.worked()
			near := worked && governor.check()
			p.due = p.due || worked || !living
			if p.due && now.Sub(p.looked) > lastPulse/2 || wait == firstPulse {
				p.looked, p.due = now, false
				p.look()
			}
			if !living && !p.due {
				continue // until the next start
			}
			if wait = min(2*wait, lastPulse); worked {
				wait = min(wait, busyPulse)
			}
			if near {
				wait = nearPulse
			}
		}
		timer.Reset(wait)
	}
}

// settle tells at once that nothing lives any more, or that something outlives what has just ended. Afterwards the sandbox may be frozen at any
// moment.
func (p *pulse) settle() {
	living := children.isLiving()
	p.mu.Lock()
	listening := len(p.open) > 0
	p.mu.Unlock()
	if !living && listening {
		p.look()
	}
	p.tellActivity(living)
}

// worked tells whether processes have used the processor since the last time, as far as the kernel says.
func (p *pulse) worked() bool {
	if boxUsage < 0 {
		return true
	}
	var b [32]byte
	n, err := syscall.Pread(boxUsage, b[:], 0)
	if err != nil {
		logf("cpuacct.usage: %v", err)
		return true
	}
	used := string(b[:n])
	p.silent++
	if used == p.used && p.silent < surePulses {
		return false
	}
	p.used, p.silent = used, 0
	return true
}

func (p *pulse) tellActivity(living bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if living != p.living {
		p.living = living
		p.sendActivity()
	}
}

// sendActivity tells 1 for any number of processes: counting them would cost more than it is worth.
func (p *pulse) sendActivity() {
	e := activityEvent{Event: "activity"}
	if p.living {
		e.Processes = 1
	}
	p.link.event(0, mustJSON(e))
}

// look compares the listening ports with those told.
func (p *pulse) look() {
	if err := refreshMemory(lastPulse / 2); err != nil {
		logf("meminfo: %v", err)
	}
	now := map[uint16]string{} // inode
	for _, l := range listeners() {
		now[l.port] = l.inode
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for port, name := range p.open {
		if _, ok := now[port]; !ok {
			delete(p.open, port)
			p.link.event(0, mustJSON(portEvent{"port", port, false, name}))
		}
	}
	for port, inode := range now {
		if _, ok := p.open[port]; !ok && len(p.open) < portsTold {
			_, name := holder(inode)
			p.open[port] = name
			p.link.event(0, mustJSON(portEvent{"port", port, true, name}))
		}
	}
}

// repeat tells a new node process what it can't know.
func (p *pulse) repeat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.living {
		p.sendActivity()
	}
	for port, name := range p.open {
		p.link.event(0, mustJSON(portEvent{"port", port, true, name}))
	}
}
