package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func (n *testNode) writeFile(channel uint32, at string, data []byte, fields map[string]any) map[string]any {
	n.t.Helper()
	all := map[string]any{"channel": channel, "path": []byte(at), "mode": nil, "user": nil, "parents": false, "append": false, "exclusive": false}
	for k, v := range fields {
		all[k] = v
	}
	n.get("write", all)
	n.upload(channel, data)
	event := n.closed(channel)
	n.get("close", map[string]any{"channel": channel})
	return event
}

func (n *testNode) readFile(channel uint32, at string, offset int, length any) string {
	n.t.Helper()
	n.get("read", map[string]any{"channel": channel, "path": []byte(at), "offset": offset, "length": length})
	n.until(func() bool { return n.finned[[2]uint32{channel, streamOut}] })
	n.closed(channel)
	return n.stream(channel, streamOut)
}

func TestFilesWrittenAndRead(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	dir := t.TempDir()
	at := filepath.Join(dir, "new/deep/file\xff")
	big := bytes.Repeat([]byte("0123456789"), 1<<20)
	event := n.writeFile(1, at, big, map[string]any{"parents": true, "mode": 0o640, "user": "12:34"})
	entry := event["entry"].(map[string]any)
	if entry["size"] != float64(len(big)) || entry["mode"] != float64(0o640) || entry["uid"] != 12.0 || entry["gid"] != 34.0 {
		t.Errorf("%v", event)
	}
	if got := n.readFile(2, at, 0, nil); got != string(big) {
		t.Errorf("%d bytes came back of %d", len(got), len(big))
	}
	if got := n.readFile(3, at, 5, 7); got != "5678901" {
		t.Errorf("a part: %q", got)
	}
	if got := n.readFile(4, at, 1<<30, nil); got != "" {
		t.Errorf("beyond the end: %q", got)
	}
	n.writeFile(5, at, []byte("short"), nil)
	if st, err := os.Stat(at); err != nil || st.Mode().Perm() != 0o640 || st.Size() != 5 {
		t.Errorf("replaced: %v, %v", st, err)
	}
	n.writeFile(6, at, []byte("er"), map[string]any{"append": true})
	if got, _ := os.ReadFile(at); string(got) != "shorter" {
		t.Errorf("appended: %q", got)
	}
	if entries, err := os.ReadDir(filepath.Dir(at)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestWritingIsAllOrNothing(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	dir := t.TempDir()
	at := filepath.Join(dir, "file")
	if err := os.WriteFile(at, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.get("write", map[string]any{"channel": 1, "path": []byte(at), "mode": nil, "parents": false, "append": false, "exclusive": false})
	half := bytes.Repeat([]byte("half"), 4096)
	for sent := 0; sent < defaultWindow/2; sent += len(half) {
		n.send(header{kind: typeData, channel: 1, offset: uint64(sent)}, half)
	}
	n.until(func() bool { return n.acked[1] > 0 })
	n.get("close", map[string]any{"channel": 1})
	for { // the abandoned file is gone soon
		if entries, err := os.ReadDir(dir); err != nil || len(entries) == 1 {
			break
		}
	}
	if got, _ := os.ReadFile(at); string(got) != "before" {
		t.Errorf("%q", got)
	}
}

func TestWritingThroughLinks(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	dir := t.TempDir()
	for name, target := range map[string]string{"dangling": "real", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	n.writeFile(1, filepath.Join(dir, "dangling"), []byte("x"), nil)
	if got, err := os.ReadFile(filepath.Join(dir, "real")); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	if code := n.refusal("write", map[string]any{"channel": 2, "path": []byte(filepath.Join(dir, "loop"))}); code != "ELOOP" {
		t.Errorf("loop: %s", code)
	}
	if event := n.writeFile(3, "/dev/null", []byte("x"), nil); event["error"] != nil {
		t.Errorf("a device: %v", event)
	}
}

func TestFileFailures(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	dir := t.TempDir()
	at := func(name string) []byte { return []byte(filepath.Join(dir, name)) }
	if err := os.WriteFile(string(at("file")), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		op     string
		fields map[string]any
		code   string
	}{
		{"read", map[string]any{"channel": 1, "path": at("missing"), "offset": 0, "length": nil}, "ENOENT"},
		{"read", map[string]any{"channel": 1, "path": []byte(dir), "offset": 0, "length": nil}, "EISDIR"},
		{"read", map[string]any{"channel": 1, "path": []byte("/dev/zero"), "offset": 0, "length": nil}, "EINVAL"},
		{"read", map[string]any{"channel": 1, "path": at("file"), "offset": -1, "length": nil}, "EPROTO"},
		{"write", map[string]any{"channel": 1, "path": []byte(dir)}, "EISDIR"},
		{"write", map[string]any{"channel": 1, "path": at("no/such/dir")}, "ENOENT"},
		{"write", map[string]any{"channel": 1, "path": at("file"), "exclusive": true}, "EEXIST"},
		{"write", map[string]any{"channel": 1, "path": at("file"), "user": "nobody-here"}, "ENOUSER"},
		{"stat", map[string]any{"path": []byte("relative"), "follow": true}, "EPROTO"},
		{"stat", map[string]any{"path": []byte("/a\x00b"), "follow": true}, "EPROTO"},
		{"stat", map[string]any{"path": []byte("/" + strings.Repeat("x", 5000)), "follow": true}, "ENAMETOOLONG"},
		{"list", map[string]any{"path": at("file"), "depth": 1, "limit": 10}, "ENOTDIR"},
		{"mkdir", map[string]any{"path": at("file"), "mode": 0o755, "parents": true}, "ENOTDIR"},
		{"mkdir", map[string]any{"path": []byte(dir), "mode": 0o755, "parents": false}, "EEXIST"},
		{"remove", map[string]any{"path": at("missing"), "recursive": true, "missing_ok": false}, "ENOENT"},
		{"remove", map[string]any{"path": []byte("/"), "recursive": true, "missing_ok": false}, "EBUSY"},
		{"move", map[string]any{"from": at("missing"), "to": at("x"), "overwrite": true}, "ENOENT"},
		{"move", map[string]any{"from": at("file"), "to": []byte(dir), "overwrite": false}, "EEXIST"},
		{"copy", map[string]any{"from": []byte(dir), "to": at("x"), "recursive": false, "overwrite": false}, "EISDIR"},
		{"copy", map[string]any{"from": []byte(dir), "to": at("x"), "recursive": true, "overwrite": false}, "EINVAL"},
		{"chown", map[string]any{"path": at("file"), "user": "nobody-here", "recursive": false}, "ENOUSER"},
		{"tar_out", map[string]any{"channel": 1, "path": at("missing")}, "ENOENT"},
		{"tar_in", map[string]any{"channel": 1, "path": at("missing"), "parents": false}, "ENOENT"},
		{"watch", map[string]any{"channel": 1, "path": at("missing"), "recursive": true}, "ENOENT"},
		{"dial", map[string]any{"channel": 1, "host": "127.0.0.1", "port": 1}, "ECONNREFUSED"},
		{"dial", map[string]any{"channel": 1, "host": "example.org", "port": 1}, "EPROTO"},
	} {
		if code := n.refusal(c.op, c.fields); code != c.code {
			t.Errorf("%d %s: %s, not %s", i, c.op, code, c.code)
		}
	}
}

func TestTreeThroughTheLink(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	from, to := makeTree(t), filepath.Join(t.TempDir(), "new")
	n.get("tar_out", map[string]any{"channel": 1, "path": []byte(from)})
	n.until(func() bool { return n.finned[[2]uint32{1, streamOut}] })
	if event := n.closed(1); event["files"] != 8.0 {
		t.Errorf("%v", event)
	}
	n.get("tar_in", map[string]any{"channel": 2, "path": []byte(to), "user": nil, "parents": true})
	n.upload(2, []byte(n.stream(1, streamOut)))
	if event := n.closed(2); event["files"] != 8.0 {
		t.Errorf("%v", event)
	}
	if a, b := describeTree(t, from), describeTree(t, to); a != b {
		t.Errorf("sent\n%s\ncame\n%s", a, b)
	}
}

func TestWatchSeesChanges(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	dir := t.TempDir()
	n.get("watch", map[string]any{"channel": 1, "path": []byte(dir), "recursive": true})
	step := func(err error, want ...string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			n.until(func() bool { return strings.Contains(n.stream(1, streamOut), w) })
		}
	}
	record := func(kind, name, to string) string {
		c := change{Type: kind, Path: []byte(filepath.Join(dir, name))}
		if to != "" {
			c.To = []byte(filepath.Join(dir, to))
		}
		return strings.TrimSuffix(strings.Split(string(mustJSON(c)), `,"dir"`)[0], "}")
	}
	step(os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755), record("create", "a", ""), record("create", "a/b", ""), record("create", "a/b/c", ""))
	step(os.WriteFile(filepath.Join(dir, "a/b/c/f"), []byte("x"), 0o644), record("create", "a/b/c/f", ""), record("write", "a/b/c/f", ""))
	step(os.Rename(filepath.Join(dir, "a/b"), filepath.Join(dir, "d")), record("rename", "a/b", "d"))
	step(os.Chmod(filepath.Join(dir, "d/c/f"), 0o600), record("chmod", "d/c/f", ""))
	step(os.Rename(filepath.Join(dir, "d/c"), filepath.Join(t.TempDir(), "gone")), record("remove", "d/c", ""))
	step(os.RemoveAll(filepath.Join(dir, "a")), record("remove", "a", ""))
	n.get("close", map[string]any{"channel": 1})
}

func TestWatchTellsWhatItLoses(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	dir := t.TempDir()
	n.silent = true
	n.get("watch", map[string]any{"channel": 1, "path": []byte(dir), "recursive": false, "window": minWindow})
	for i := 0; i < 200; i++ {
		if err := os.WriteFile(filepath.Join(dir, strings.Repeat("x", 10)+string(rune('a'+i))), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n.until(func() bool { return len(n.stream(1, streamOut)) > minWindow-300 })
	n.silent = false
	n.ack(1, streamOut)
	n.until(func() bool { return strings.Contains(n.stream(1, streamOut), `"overflow"`) })
}

func TestRelay(t *testing.T) {
	n, r := startAgent(t)
	n.hello(1, nil)
	r.hello(1, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		c, err := listener.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
			_, _ = c.Write([]byte("end"))
			c.Close()
		}
		served <- err
	}()
	port := listener.Addr().(*net.TCPAddr).Port
	r.get("dial", map[string]any{"channel": 1, "host": "", "port": port})
	data := bytes.Repeat([]byte("relay"), 1<<19)
	r.upload(1, data)
	r.until(func() bool { return r.finned[[2]uint32{1, streamOut}] })
	if event := r.closed(1); event["error"] != nil || r.stream(1, streamOut) != string(data)+"end" {
		t.Errorf("%v, %d bytes", event, len(r.stream(1, streamOut)))
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if code := r.refusal("start", run(2, false, "true")); code != "ENOSYS" {
		t.Errorf("a process by the relay link: %s", code)
	}
}

func TestServersOutside(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hosts")
	t.Setenv("CORRAL_TEST_HOSTS", file)
	before := "127.0.0.1 localhost\n10.0.0.1 outside-db.test\n"
	if err := os.WriteFile(file, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	hosts := func() string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	n, r := startAgent(t)
	n.hello(1, nil)
	r.hello(1, nil)
	at := func(name string, port int) map[string]any {
		return map[string]any{"channel": 1, "name": name, "port": port}
	}
	for _, wrong := range []map[string]any{at("localhost", 1), at("127.0.0.1", 1), at("a b", 1), at("A", 1), at("", 1), at("db", 0)} {
		if code := r.refusal("listen", wrong); code != "EPROTO" {
			t.Errorf("%v: %s", wrong, code)
		}
	}
	answer := r.get("listen", at("outside-db.test", 54321))
	address := answer["address"].(string) + ":54321"
	r.get("listen", map[string]any{"channel": 2, "name": "outside-db.test", "port": 54322})
	if hosts() != answer["address"].(string)+" outside-db.test "+hostsMark+"\n"+before {
		t.Error(hosts())
	}
	if code := r.refusal("listen", map[string]any{"channel": 3, "name": "outside-db.test", "port": 54322}); code != "EADDRINUSE" {
		t.Error(code)
	}
	connection, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	r.until(func() bool { return len(r.events[1]) > 0 })
	number := r.events[1][0]["connection"]
	r.get("accept", map[string]any{"channel": 4, "listener": 1, "connection": number})
	if code := r.refusal("accept", map[string]any{"channel": 5, "listener": 1, "connection": number}); code != "ECONNABORTED" {
		t.Error(code)
	}
	if code := r.refusal("accept", map[string]any{"channel": 5, "listener": 4, "connection": 1}); code != "ECONNABORTED" {
		t.Error(code)
	}
	said := bytes.Repeat([]byte("outside"), 1<<18)
	heard := make(chan []byte, 1)
	go func() {
		text, _ := io.ReadAll(connection)
		_, _ = connection.Write([]byte("thanks"))
		connection.Close()
		heard <- text
	}()
	r.upload(4, said)
	if text := <-heard; !bytes.Equal(text, said) {
		t.Errorf("%d bytes of %d came", len(text), len(said))
	}
	r.until(func() bool { return r.finned[[2]uint32{4, streamOut}] })
	if r.stream(4, streamOut) != "thanks" {
		t.Error(r.stream(4, streamOut))
	}
	waits, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	r.until(func() bool { return len(r.events[1]) > 1 })
	r.get("close", map[string]any{"channel": 1})
	if _, err := waits.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one that nobody took ends with %v", err)
	}
	if again, err := net.Dial("tcp", address); err == nil {
		again.Close()
		t.Error("it still listens")
	}
	r.get("close", map[string]any{"channel": 2})
	if hosts() != before {
		t.Error(hosts())
	}
	// It is not told of as a server of the sandbox.
	row := "   0: 01004D7F:D431 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n"
	if all := parseListeners(row + strings.Replace(row, "01004D7F", "0100007F", 1)); len(all) != 1 || all[0].address.String() != "127.0.0.1" {
		t.Error(all)
	}
}

// What lies on the root itself the node finds through its own mount; below any other mount it would find something else, or nothing.
func TestWhatLiesOnTheRoot(t *testing.T) {
	mounts := `44 15 0:17 /rootfs / rw - 9p none rw,directfs
45 44 0:22 / /proc rw - proc none rw
48 44 0:26 / /tmp rw - tmpfs none rw
49 44 0:27 / /srv/my\040data rw - 9p none rw
`
	for at, on := range map[string]bool{"/a": true, "/tmpfile": true, "/a/tmp/b": true, "/tmp/a": false, "/proc/1/maps": false, "/srv/my data/x": false, "/srv/my": true} {
		if onRoot(mounts, at) != on {
			t.Errorf("%s: not %v", at, on)
		}
	}
	if onRoot(mounts+"50 44 0:28 / / rw - tmpfs none rw\n", "/a") {
		t.Error("something is mounted over the root")
	}
}

// An agent that has not been claimed has no disk: a node that asks gets the bytes on the link.
func TestDirectTransfersAreRefusedWhereThereIsNoDisk(t *testing.T) {
	n, _ := startAgent(t)
	n.hello(1, nil)
	at := filepath.Join(t.TempDir(), "file")
	n.get("write", map[string]any{"channel": 1, "path": []byte(at), "mode": nil, "parents": false, "append": false, "exclusive": false})
	n.send(header{kind: typeData, channel: 1}, []byte("hello "))
	if code := n.refusal("direct", map[string]any{"channel": 1, "offset": 6}); code != "EOPNOTSUPP" {
		t.Errorf("a file of no sandbox: %s", code)
	}
	if code := n.refusal("direct", map[string]any{"channel": 2, "offset": 0}); code != "EPROTO" {
		t.Errorf("no channel: %s", code)
	}
	n.send(header{kind: typeData, flags: flagFin, channel: 1, offset: 6}, []byte("world"))
	if event := n.closed(1); event["error"] != nil {
		t.Errorf("%v", event)
	}
	n.get("read", map[string]any{"channel": 3, "path": []byte(at), "offset": 0, "length": nil, "direct": 1})
	n.until(func() bool { return n.finned[[2]uint32{3, streamOut}] })
	if got := n.stream(3, streamOut); got != "hello world" {
		t.Errorf("%q", got)
	}
}
