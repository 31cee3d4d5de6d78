package main

import (
	"encoding/json"
	"sync"
)

// channelLimit is how many channels a link may have open at once.
const channelLimit = 4096

// channel is a piece of work with up to three streams: a process, a transfer, a watch, a connection.
type channel struct {
	link *link
	id   uint32
	kind string
	in   *inlet     // stream 0, or nil
	out  [3]*outlet // by stream number; nil where there is none

	// Closed when the opening request has its result.
	ready     chan struct{}
	answer    any
	err       error
	writing   *writing   // of kind "write"
	listening *listening // of kind "listen"

	mu      sync.Mutex
	process *process // of kind "process"
	ended   json.RawMessage
	closed  bool
	stop    func() // ends the work; set by whoever does it
}

// open runs the opening request of a channel. Opening again a channel that exists waits for the first one's answer and returns it, marked as existing.
// work may start goroutines; it ends the channel's life by the streams it finishes and by announce.
func (l *link) openChannel(id uint32, kind string, streams func(*channel) error, work func(*channel) (any, error)) (any, error) {
	if id == 0 || id >= 1<<31 {
		return nil, protocol("channel %d is not in 1 to 2147483647", id)
	}
	ch := &channel{link: l, id: id, kind: kind, ready: make(chan struct{})}
	if err := streams(ch); err != nil {
		return nil, err
	}
	l.mu.Lock()
	if old := l.channels[id]; old != nil {
		l.mu.Unlock()
		return old.again(kind)
	}
	if len(l.channels) >= channelLimit {
		l.mu.Unlock()
		return nil, &failure{Code: "EAGAIN", Message: "4096 channels are open"}
	}
	l.channels[id] = ch
	l.mu.Unlock()

	defer close(ch.ready)
	ch.err = &failure{Code: "EIO", Message: "the agent failed while it opened the channel"} // unless work returns
	ch.answer, ch.err = work(ch)
	if ch.err != nil {
		l.forget(ch)
	}
	return ch.answer, ch.err
}

// again answers a repeated opening.
func (c *channel) again(kind string) (any, error) {
	if c.kind != kind {
		return nil, protocol("channel %d is a %s", c.id, c.kind)
	}
	<-c.ready
	if c.err != nil {
		return nil, c.err
	}
	fields := map[string]any{}
	if c.answer != nil {
		if err := json.Unmarshal(mustJSON(c.answer), &fields); err != nil {
			return nil, err
		}
	}
	fields["existing"] = true
	return fields, nil
}

// withStreams returns what openChannel calls to make a channel's streams. window is the wire's argument, 0 for the default.
func withStreams(window int, in bool, outs ...uint16) func(*channel) error {
	return func(c *channel) error {
		if window == 0 {
			window = defaultWindow
		}
		if window < minWindow || window > maxWindow {
			return protocol("window %d is not in %d to %d", window, minWindow, maxWindow)
		}
		if in {
			c.in = newInlet(c.link, c.id, window)
		}
		for _, stream := range outs {
			c.out[stream] = newOutlet(c.link, c.id, stream, window)
		}
		return nil
	}
}

// onClose sets what ends the channel's work. When the channel is closed already it runs at once.
func (c *channel) onClose(stop func()) {
	c.mu.Lock()
	closed := c.closed
	c.stop = stop
	c.mu.Unlock()
	if closed {
		stop()
	}
}

// announce records how the channel ended and tells the node.
func (c *channel) announce(event any) {
	record := mustJSON(event)
	c.mu.Lock()
	c.ended = record
	c.mu.Unlock()
	c.link.event(c.id, record)
}

// closedEvent is the end of every channel but a process'.
type closedEvent struct {
	Event string   `json:"event"`
	Error *failure `json:"error,omitempty"`
	Entry *entry   `json:"entry,omitempty"`
	Files *int     `json:"files,omitempty"`
	Bytes *int64   `json:"bytes,omitempty"`
}

// finished announces the end of a transfer.
func (c *channel) finished(event closedEvent, err error) {
	event.Event = "closed"
	if err != nil {
		event = closedEvent{Event: "closed", Error: asFailure(err)}
	}
	c.announce(event)
}

// forget closes a channel's streams and drops it.
func (l *link) forget(c *channel) {
	l.mu.Lock()
	if l.channels[c.id] == c {
		delete(l.channels, c.id)
	}
	l.mu.Unlock()
	c.mu.Lock()
	stop := c.stop
	c.closed = true
	c.mu.Unlock()
	if c.in != nil {
		c.in.close()
	}
	for _, o := range c.out {
		if o != nil {
			o.close()
		}
	}
	if stop != nil {
		stop()
	}
}

type channelArgs struct {
	named
	Channel uint32 `json:"channel"`
}

// closeChannel ends a channel's work and forgets it. One that is not there is closed already.
func closeChannel(l *link, args *channelArgs) (any, error) {
	if c := l.channel(args.Channel); c != nil {
		l.forget(c)
	}
	return nil, nil
}
