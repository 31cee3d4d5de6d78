package main

import (
	"encoding/json"
	"sort"
	"strconv"
)

// wireVersion is the version of docs/wire.md this agent speaks.
const wireVersion = 1

// agentVersion is set by the linker (-X main.agentVersion=…).
var agentVersion = "0.1.0"

type helloArgs struct {
	named
	Version  int    `json:"version"`
	Epoch    uint64 `json:"epoch"`
	Channels []struct {
		Channel  uint32            `json:"channel"`
		Received map[string]uint64 `json:"received"`
	} `json:"channels"`
}

type helloAnswer struct {
	Version  int            `json:"version"`
	Agent    string         `json:"agent"`
	Claimed  bool           `json:"claimed"`
	Channels []channelState `json:"channels"`
	More     bool           `json:"more,omitempty"` // the rest did not fit: ask `channels` after the last one
}

// answerBudget is how many bytes of records an answer may carry, so that it fits a frame whatever surrounds them.
const answerBudget = 240 << 10

// channelState is what a node needs to adopt a channel.
type channelState struct {
	Channel  uint32            `json:"channel"`
	Kind     string            `json:"kind"`
	ID       string            `json:"id,omitempty"`
	PID      int               `json:"pid,omitempty"`
	Received map[string]uint64 `json:"received"`
	Taken    uint64            `json:"taken,omitempty"` // of stream 0, handed on or not
	Ended    json.RawMessage   `json:"ended"`
}

// hello lets a node process take the link: it tells what the agent has, sets every stream to where the node is, and resends from there.
// A hello also ends a quiesce that an earlier node process left behind.
func (l *link) hello(number uint32, payload []byte) {
	var args helloArgs
	if err := json.Unmarshal(payload, &args); err != nil || args.Version != wireVersion {
		// Nothing else may be said before a hello has succeeded, but its refusal must be.
		l.writing.Lock()
		defer l.writing.Unlock()
		err := l.write(header{kind: typeResponse, channel: number}, encodeAnswer(nil, protocol("hello needs version %d", wireVersion)))
		if err != nil {
			logf("%s: hello: %v", l.name, err)
		}
		return
	}
	received := map[uint32]map[string]uint64{}
	for _, c := range args.Channels {
		received[c.Channel] = c.Received
	}

	// Held until the answer is out, so that nothing of this epoch overtakes it.
	l.writing.Lock()
	l.mu.Lock()
	if args.Epoch < l.epoch {
		epoch := l.epoch
		l.mu.Unlock()
		err := l.write(header{kind: typeResponse, channel: number}, encodeAnswer(nil, protocol("epoch %d is over, this is %d", args.Epoch, epoch)))
		l.writing.Unlock()
		if err != nil {
			logf("%s: hello: %v", l.name, err)
		}
		return
	}
	l.epoch = args.Epoch
	l.mu.Unlock()
	l.open.Store(true)

	channels := l.openChannels()
	answer := helloAnswer{Version: wireVersion, Agent: agentVersion, Claimed: claimed.Load()}
	answer.Channels, answer.More = describe(channels, 0)
	for _, c := range channels {
		for _, o := range c.out {
			if o != nil {
				offset, known := received[c.id][strconv.Itoa(int(o.stream))]
				o.rewind(offset, known)
			}
		}
	}
	err := l.write(header{kind: typeResponse, channel: number}, encodeAnswer(answer, nil))
	l.writing.Unlock()
	if err != nil {
		logf("%s: hello: %v", l.name, err)
		return
	}
	for _, c := range channels {
		for _, o := range c.out {
			if o != nil {
				o.quiesce(false)
			}
		}
	}
	if l.greeted != nil {
		l.greeted()
	}
}

// openChannels lists the link's channels in order of their numbers.
func (l *link) openChannels() []*channel {
	l.mu.Lock()
	defer l.mu.Unlock()
	channels := make([]*channel, 0, len(l.channels))
	for _, c := range l.channels {
		channels = append(channels, c)
	}
	sort.Slice(channels, func(i, j int) bool { return channels[i].id < channels[j].id })
	return channels
}

// describe returns the states of the channels beyond `after` that fit an answer. Those still being opened are left out: the node opens them again.
func describe(channels []*channel, after uint32) (states []channelState, more bool) {
	states = []channelState{}
	size := 0
	for _, c := range channels {
		if c.id <= after {
			continue
		}
		select {
		case <-c.ready:
		default:
			continue
		}
		state := c.state()
		size += len(mustJSON(state)) + 1
		if size > answerBudget {
			return states, true
		}
		states = append(states, state)
	}
	return states, false
}

type channelsArgs struct {
	named
	After uint32 `json:"after"`
}

type channelsAnswer struct {
	Channels []channelState `json:"channels"`
	More     bool           `json:"more"`
}

// listChannels continues a hello whose answer had more channels than fit.
func listChannels(l *link, args *channelsArgs) (any, error) {
	states, more := describe(l.openChannels(), args.After)
	return channelsAnswer{states, more}, nil
}

// state describes a channel that has been opened.
func (c *channel) state() channelState {
	s := channelState{Channel: c.id, Kind: c.kind, Received: map[string]uint64{}}
	if c.in != nil {
		s.Received["0"], s.Taken = c.in.offsets()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Ended = c.ended
	if s.Ended == nil {
		s.Ended = json.RawMessage("null")
	}
	if c.process != nil {
		s.ID, s.PID = c.process.id, c.process.pid
	}
	return s
}
