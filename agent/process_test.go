package main

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestOutputAndExitCode(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	n.get("start", run(1, false, "sh", "-c", "echo out; echo err >&2; exit 7"))
	exit := n.ended(1)
	if exit["code"] != 7.0 || exit["signal"] != nil || n.stream(1, streamOut) != "out\n" || n.stream(1, streamErr) != "err\n" {
		t.Errorf("%v %q %q", exit, n.stream(1, streamOut), n.stream(1, streamErr))
	}
	n.get("close", map[string]any{"channel": 1})
}

func TestStdinReachesTheProcess(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	n.get("start", run(1, true, "cat"))
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	n.upload(1, data)
	n.ended(1)
	if n.stream(1, streamOut) != string(data) {
		t.Errorf("%d bytes came back of %d", len(n.stream(1, streamOut)), len(data))
	}
}

func TestStdinOfAProcessThatDoesNotRead(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	n.get("start", run(1, true, "sh", "-c", "exec <&-; echo closed; sleep 60"))
	n.until(func() bool { return n.stream(1, streamOut) == "closed\n" })
	n.upload(1, make([]byte, 5<<20)) // swallowed, or this would wait for ever
	n.get("close", map[string]any{"channel": 1})
}

func TestStartFailures(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	script := t.TempDir() + "/noexec"
	if err := os.WriteFile(script, []byte("neither a script nor a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	with := func(fields map[string]any, key string, value any) map[string]any {
		fields[key] = value
		return fields
	}
	for name, c := range map[string]struct {
		fields map[string]any
		code   string
	}{
		"missing":             {run(1, false, "no-such-program"), "ENOENT"},
		"missing path":        {run(1, false, "/no/such/program"), "ENOENT"},
		"not executable":      {run(1, false, "/etc/passwd"), "EACCES"},
		"directory":           {run(1, false, "/etc"), "EACCES"},
		"no program":          {run(1, false, script), "ENOEXEC"},
		"no argv":             {run(1, false), "EPROTO"},
		"NUL":                 {run(1, false, "echo", "a\x00b"), "EPROTO"},
		"missing cwd":         {with(run(1, false, "true"), "cwd", []byte("/no/such/dir")), "ENOENT"},
		"cwd is a file":       {with(run(1, false, "true"), "cwd", []byte("/etc/passwd")), "ENOTDIR"},
		"relative cwd":        {with(run(1, false, "true"), "cwd", []byte("tmp")), "EPROTO"},
		"unknown user":        {with(run(1, false, "true"), "user", "nobody-here"), "ENOUSER"},
		"bad variable":        {with(run(1, false, "true"), "env", [][]byte{[]byte("novalue")}), "EPROTO"},
		"channel 0":           {run(0, false, "true"), "EPROTO"},
		"channel too large":   {run(1<<31, false, "true"), "EPROTO"},
		"window too small":    {with(run(1, false, "true"), "window", 1), "EPROTO"},
		"a field of tomorrow": {with(run(1, false, "true"), "nice", 3), "EPROTO"},
	} {
		if code := n.refusal("start", c.fields); code != c.code {
			t.Errorf("%s: %s", name, code)
		}
	}
	n.get("start", run(1, false, "true")) // the failures left channel 1 free
}

func TestUserAndDirectory(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	c := run(1, false, "sh", "-c", "id -u; id -g; pwd; echo $HOME; cat /proc/self/status")
	c["user"], c["cwd"] = "12345:54321", []byte("/usr")
	n.get("start", c)
	n.ended(1)
	out := n.stream(1, streamOut)
	if !strings.HasPrefix(out, "12345\n54321\n/usr\n/\n") || !strings.Contains(out, "NoNewPrivs:\t1") || !strings.Contains(out, "CapEff:\t0000000000000000") {
		t.Errorf("%s", out)
	}
}

func TestSignals(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	for i, to := range []string{"process", "group", "tree"} {
		id := uint32(i + 1)
		n.get("start", run(id, false, "sleep", "60"))
		n.get("signal", map[string]any{"channel": id, "signal": int(syscall.SIGTERM), "to": to})
		if exit := n.ended(id); exit["signal"] != float64(syscall.SIGTERM) || exit["code"] != nil {
			t.Errorf("%s: %v", to, exit)
		}
		if code := n.refusal("signal", map[string]any{"channel": id, "signal": int(syscall.SIGTERM), "to": to}); code != "ESRCH" {
			t.Errorf("%s after the end: %s", to, code)
		}
	}
	if code := n.refusal("signal", map[string]any{"channel": 99, "signal": 9, "to": "process"}); code != "ESRCH" {
		t.Errorf("no such channel: %s", code)
	}
	n.get("start", run(9, false, "sleep", "60"))
	if code := n.refusal("signal", map[string]any{"channel": 9, "signal": 65, "to": "process"}); code != "EPROTO" {
		t.Errorf("signal 65: %s", code)
	}
}

func TestClosingKills(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	n.get("start", run(1, false, "sh", "-c", "setsid sleep 60 & echo $!; wait"))
	n.until(func() bool { return strings.HasSuffix(n.stream(1, streamOut), "\n") })
	n.get("close", map[string]any{"channel": 1})
	pid := strings.TrimSpace(n.stream(1, streamOut))
	for deadline := time.Now().Add(patience); ; {
		if _, err := os.Stat("/proc/" + pid); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a descendant in a session of its own lives on")
		}
	}
}

func TestStreamsGoOnBehindTheExit(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	n.get("start", run(1, true, "sh", "-c", "exec 3<&0; echo first; (read x <&3; echo $x) & exit 3"))
	exit := n.ended(1)
	if exit["code"] != 3.0 || exit["stdout"] != 6.0 || n.finned[[2]uint32{1, streamOut}] {
		t.Errorf("%v, finned %v", exit, n.finned)
	}
	n.upload(1, []byte("second\n"))
	n.until(func() bool { return n.finned[[2]uint32{1, streamOut}] })
	if n.stream(1, streamOut) != "first\nsecond\n" {
		t.Errorf("%q", n.stream(1, streamOut))
	}
}

func TestSlowReaderStallsOnlyItself(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	n.silent = true
	n.get("start", run(1, false, "sh", "-c", "head -c 5000000 /dev/zero; echo done"))
	n.until(func() bool { return len(n.stream(1, streamOut)) == defaultWindow })
	n.get("ping", nil)
	n.get("start", run(2, false, "echo", "hi"))
	n.ended(2)
	if len(n.stream(1, streamOut)) != defaultWindow {
		t.Errorf("%d bytes without an ack", len(n.stream(1, streamOut)))
	}
	n.silent = false
	n.ack(1, streamOut)
	n.ended(1)
	if out := n.stream(1, streamOut); len(out) != 5000005 || !strings.HasSuffix(out, "\x00done\n") {
		t.Errorf("%d bytes", len(out))
	}
}

func TestANewNodeProcessAdopts(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	n.silent = true
	n.get("start", run(1, false, "sh", "-c", "echo one; echo two; exit 5"))
	pid := n.get("start", run(2, true, "cat"))["pid"]
	n.send(header{kind: typeData, channel: 2}, []byte("kept\n"))
	n.ended(1)
	n.until(func() bool { return n.stream(2, streamOut) == "kept\n" })
	n.forget()
	n.silent = false
	n.data[[2]uint32{1, streamOut}] = []byte("one\n") // what the dead one has written down; of channel 2 it has nothing
	answer := n.hello(2, map[uint32]map[string]int{1: {"1": 4, "2": 0}})
	held := answer["channels"].([]any)
	first, second := held[0].(map[string]any), held[1].(map[string]any)
	if first["id"] != "pr-1" || first["ended"].(map[string]any)["code"] != 5.0 || second["ended"] != nil || second["pid"] != pid ||
		second["received"].(map[string]any)["0"] != 5.0 {
		t.Errorf("%v", held)
	}
	n.until(func() bool { return n.finned[[2]uint32{1, streamOut}] && n.stream(2, streamOut) == "kept\n" })
	if n.stream(1, streamOut) != "one\ntwo\n" {
		t.Errorf("%q", n.stream(1, streamOut))
	}
	again := n.get("start", run(2, true, "something-else"))
	if again["existing"] != true || again["pid"] != pid {
		t.Errorf("opened twice: %v", again)
	}
	n.send(header{kind: typeData, flags: flagFin, channel: 2}, []byte("kept\nmore\n")) // sent again from the start: the old part is skipped
	if exit := n.ended(2); exit["code"] != 0.0 || n.stream(2, streamOut) != "kept\nmore\n" {
		t.Errorf("%v %q", exit, n.stream(2, streamOut))
	}
}

func TestTerminal(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	c := run(1, true, "sh", "-c", "tty; stty size; read x; stty size; echo got $x; cat")
	c["pty"] = map[string]any{"rows": 30, "cols": 99}
	n.get("start", c)
	n.until(func() bool { return strings.Contains(n.stream(1, streamOut), "30 99") })
	n.get("resize", map[string]any{"channel": 1, "rows": 40, "cols": 100})
	n.send(header{kind: typeData, channel: 1}, []byte("hello\n"))
	n.until(func() bool { return strings.Contains(n.stream(1, streamOut), "got hello") })
	n.send(header{kind: typeData, flags: flagFin, channel: 1, offset: 6}, nil) // ctrl-D for cat
	exit := n.ended(1)
	if out := n.stream(1, streamOut); exit["code"] != 0.0 || !strings.Contains(out, "/dev/pts/") || !strings.Contains(out, "40 100") {
		t.Errorf("%v %q", exit, out)
	}
	n.until(func() bool { return n.finned[[2]uint32{1, streamOut}] })
	n.get("start", run(2, false, "sleep", "60"))
	if code := n.refusal("resize", map[string]any{"channel": 2, "rows": 1, "cols": 1}); code != "ENOTTY" {
		t.Errorf("no terminal: %s", code)
	}
}

func TestInterruptFromTheTerminal(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	c := run(1, true, "sh", "-c", "echo ready; exec sleep 60")
	c["pty"], c["user"] = map[string]any{"rows": 30, "cols": 99}, "12345"
	n.get("start", c)
	n.until(func() bool { return strings.Contains(n.stream(1, streamOut), "ready") })
	n.send(header{kind: typeData, channel: 1}, []byte{3})
	if exit := n.ended(1); exit["signal"] != float64(syscall.SIGINT) {
		t.Errorf("%v", exit)
	}
}

func TestQuiesced(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	n.get("start", run(1, true, "cat"))
	n.get("quiesce", map[string]any{"on": true})
	n.send(header{kind: typeData, channel: 1}, []byte("x"))
	n.get("start", run(2, false, "true")) // takes its time; nothing of channel 1 may come meanwhile
	n.ended(2)
	if n.stream(1, streamOut) != "" {
		t.Errorf("%q while quiesced", n.stream(1, streamOut))
	}
	n.get("quiesce", map[string]any{"on": false})
	n.until(func() bool { return n.stream(1, streamOut) == "x" })
}

func TestActivityIsTold(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	n.get("start", run(1, true, "cat"))
	told := func(want float64) {
		t.Helper()
		n.until(func() bool {
			for _, e := range n.events[0] {
				if e["event"] == "activity" && e["processes"] == want {
					return true
				}
			}
			return false
		})
	}
	told(1)
	n.upload(1, nil)
	told(0)
}
