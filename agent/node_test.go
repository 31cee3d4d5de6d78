package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// The end-to-end tests run this binary again as the agent, on real packet sockets. Not being init it can't be claimed: what it starts lives in the
// test's own root. Starting processes sets users, so they need root.
func TestMain(m *testing.M) {
	if os.Getenv("CORRAL_TEST_AGENT") != "" {
		exposed.hosts = os.Getenv("CORRAL_TEST_HOSTS")
		if err := serve(); err != nil {
			logf("agent: %v", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// testNode is the node's end of a link.
type testNode struct {
	t       *testing.T
	socket  *os.File
	number  uint32
	answers map[uint32]map[string]any
	events  map[uint32][]map[string]any
	data    map[[2]uint32][]byte // by channel and stream
	finned  map[[2]uint32]bool
	acked   map[uint32]uint64
	silent  bool // don't ack
}

const patience = 20 * time.Second

// startAgent runs an agent and returns its control and its relay link.
func startAgent(t *testing.T) (control, relay *testNode) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to start processes as other users")
	}
	var nodes [2]*testNode
	var inner [2]*os.File
	for i := range nodes {
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range pair {
			if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, 32, 4<<20); err != nil { // SO_SNDBUFFORCE: a frame must fit
				t.Fatal(err)
			}
		}
		if err := syscall.SetNonblock(pair[0], true); err != nil {
			t.Fatal(err)
		}
		inner[i] = os.NewFile(uintptr(pair[1]), "agent's end")
		nodes[i] = &testNode{t: t, socket: os.NewFile(uintptr(pair[0]), "node's end")}
		nodes[i].forget()
	}
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), "CORRAL_TEST_AGENT=1")
	command.Stdin, command.Stdout, command.Stderr = inner[0], inner[1], os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	inner[0].Close()
	inner[1].Close()
	t.Cleanup(func() {
		nodes[0].socket.Close()
		nodes[1].socket.Close()
		if err := command.Wait(); err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	})
	return nodes[0], nodes[1]
}

// forget is what a node process knows when it starts.
func (n *testNode) forget() {
	n.answers, n.events = map[uint32]map[string]any{}, map[uint32][]map[string]any{}
	n.data, n.finned, n.acked = map[[2]uint32][]byte{}, map[[2]uint32]bool{}, map[uint32]uint64{}
}

func (n *testNode) send(h header, payload []byte) {
	n.t.Helper()
	first := h.encode()
	if _, err := n.socket.Write(append(first[:], payload...)); err != nil {
		n.t.Fatal(err)
	}
}

// receive takes one frame.
func (n *testNode) receive() {
	n.t.Helper()
	packet := make([]byte, frameLimit+1)
	if err := n.socket.SetReadDeadline(time.Now().Add(patience)); err != nil {
		n.t.Fatal(err)
	}
	size, err := n.socket.Read(packet)
	if err != nil {
		n.t.Fatalf("the agent says nothing: %v; so far %v %q", err, n.events, n.data)
	}
	h, payload, err := parseFrame(packet[:size])
	if err != nil {
		n.t.Fatal(err)
	}
	var object map[string]any
	if h.kind == typeResponse || h.kind == typeEvent {
		if err := json.Unmarshal(payload, &object); err != nil {
			n.t.Fatal(err)
		}
	}
	switch h.kind {
	case typeResponse:
		n.answers[h.channel] = object
	case typeEvent:
		n.events[h.channel] = append(n.events[h.channel], object)
	case typeAck:
		n.acked[h.channel] = h.offset
	case typeData:
		key := [2]uint32{h.channel, uint32(h.stream)}
		if h.offset != uint64(len(n.data[key])) {
			n.t.Fatalf("data of %v at %d, %d is next", key, h.offset, len(n.data[key]))
		}
		n.data[key] = append(n.data[key], payload...)
		n.finned[key] = n.finned[key] || h.flags&flagFin != 0
		if !n.silent {
			n.ack(h.channel, h.stream)
		}
	default:
		n.t.Fatalf("frame of type %d", h.kind)
	}
}

func (n *testNode) ack(channel uint32, stream uint16) {
	n.t.Helper()
	offset := uint64(len(n.data[[2]uint32{channel, uint32(stream)}]))
	n.send(header{kind: typeAck, stream: stream, channel: channel, offset: offset}, binary.LittleEndian.AppendUint32(nil, defaultWindow))
}

func (n *testNode) until(done func() bool) {
	n.t.Helper()
	for !done() {
		n.receive()
	}
}

// ask sends a request and waits for its answer.
func (n *testNode) ask(op string, fields map[string]any) map[string]any {
	n.t.Helper()
	if fields == nil {
		fields = map[string]any{}
	}
	fields["op"] = op
	n.number++
	number := n.number
	n.send(header{kind: typeRequest, channel: number}, mustJSON(fields))
	n.until(func() bool { return n.answers[number] != nil })
	return n.answers[number]
}

// get asks for something that must succeed.
func (n *testNode) get(op string, fields map[string]any) map[string]any {
	n.t.Helper()
	answer := n.ask(op, fields)
	if answer["ok"] != true {
		n.t.Fatalf("%s: %v", op, answer)
	}
	return answer
}

// refusal asks for something that must fail, and returns the code.
func (n *testNode) refusal(op string, fields map[string]any) string {
	n.t.Helper()
	answer := n.ask(op, fields)
	failure, ok := answer["error"].(map[string]any)
	if answer["ok"] != false || !ok {
		n.t.Fatalf("%s: %v", op, answer)
	}
	return failure["code"].(string)
}

func (n *testNode) hello(epoch int, received map[uint32]map[string]int) map[string]any {
	n.t.Helper()
	channels := []any{}
	for id, offsets := range received {
		channels = append(channels, map[string]any{"channel": id, "received": offsets})
	}
	return n.get("hello", map[string]any{"version": 1, "epoch": epoch, "channels": channels})
}

func run(channel uint32, stdin bool, argv ...string) map[string]any {
	words := make([][]byte, len(argv))
	for i, a := range argv {
		words[i] = []byte(a)
	}
	return map[string]any{"channel": channel, "id": "pr-" + strconv.Itoa(int(channel)), "argv": words, "env": [][]byte{}, "cwd": nil, "user": nil, "pty": nil, "stdin": stdin}
}

// ended waits for the end of a process and for its output up to there.
func (n *testNode) ended(channel uint32) map[string]any {
	n.t.Helper()
	var exit map[string]any
	n.until(func() bool {
		for _, e := range n.events[channel] {
			if e["event"] == "exit" {
				exit = e
			}
		}
		return exit != nil
	})
	for stream, name := range map[uint32]string{streamOut: "stdout", streamErr: "stderr"} {
		n.until(func() bool { return float64(len(n.data[[2]uint32{channel, stream}])) >= exit[name].(float64) })
	}
	return exit
}

func (n *testNode) closed(channel uint32) map[string]any {
	n.t.Helper()
	n.until(func() bool { return len(n.events[channel]) > 0 })
	return n.events[channel][0]
}

func (n *testNode) stream(channel, stream uint32) string {
	return string(n.data[[2]uint32{channel, stream}])
}

// upload sends stream 0 whole, within the window.
func (n *testNode) upload(channel uint32, data []byte) {
	n.t.Helper()
	for offset := 0; ; {
		piece := data[offset:min(offset+payloadLimit, len(data))]
		n.until(func() bool { return uint64(offset+len(piece)) <= n.acked[channel]+defaultWindow })
		last := offset+len(piece) == len(data)
		h := header{kind: typeData, channel: channel, offset: uint64(offset)}
		if last {
			h.flags = flagFin
		}
		n.send(h, piece)
		if offset += len(piece); last {
			return
		}
	}
}

func TestHello(t *testing.T) {
	n, _ := startAgent(t)
	answer := n.hello(1, nil)
	if answer["claimed"] != false || answer["version"] != 1.0 {
		t.Errorf("%v", answer)
	}
	if code := n.refusal("hello", map[string]any{"version": 2, "epoch": 2, "channels": []any{}}); code != "EPROTO" {
		t.Errorf("version 2: %s", code)
	}
	if code := n.refusal("hello", map[string]any{"version": 1, "epoch": 0, "channels": []any{}}); code != "EPROTO" {
		t.Errorf("an older epoch: %s", code)
	}
}

func TestRequestsRightBehindTheFirstHello(t *testing.T) {
	n, _ := startAgent(t)
	n.send(header{kind: typeRequest, channel: 500}, []byte(`{"op":"hello","version":1,"epoch":1,"channels":[]}`))
	for i := uint32(501); i < 520; i++ {
		n.send(header{kind: typeRequest, channel: i}, []byte(`{"op":"ping"}`))
	}
	n.receive()
	if n.answers[500] == nil {
		t.Errorf("the first answer is not hello's: %v", n.answers)
	}
	n.until(func() bool { return len(n.answers) == 20 })
}

func TestGarbageIsDropped(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	n.send(header{kind: 99}, nil)
	n.send(header{kind: typeData, channel: 12345}, []byte("for nobody"))
	n.send(header{kind: typeAck, channel: 12345, offset: 5}, []byte{0, 0, 0, 0})
	if _, err := n.socket.Write([]byte("short")); err != nil {
		t.Fatal(err)
	}
	n.send(header{kind: typeRequest, channel: 1000}, bytes.Repeat([]byte("["), 100000))
	n.until(func() bool { return n.answers[1000] != nil })
	n.get("ping", nil)
	if code := n.refusal("frobnicate", nil); code != "ENOSYS" {
		t.Errorf("unknown op: %s", code)
	}
}
