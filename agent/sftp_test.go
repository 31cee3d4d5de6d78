package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sftpClient writes requests and reads answers, as bare as the protocol.
type sftpClient struct {
	t  *testing.T
	to io.Writer
	in io.Reader
}

func startSftp(t *testing.T) (*sftpClient, chan int) {
	t.Setenv("HOME", t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chdir(here) })
	requests, to := io.Pipe()
	in, answers := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		code := serveSftp(requests, answers)
		requests.Close()
		answers.Close()
		ended <- code
	}()
	t.Cleanup(func() { to.Close() })
	return &sftpClient{t, to, in}, ended
}

// packet is a request: its type, then numbers, texts (with their lengths) and bytes as they are.
func packet(kind byte, fields ...any) []byte {
	body := []byte{kind}
	for _, field := range fields {
		switch f := field.(type) {
		case int:
			body = binary.BigEndian.AppendUint32(body, uint32(f))
		case uint64:
			body = binary.BigEndian.AppendUint64(body, f)
		case string:
			body = append(binary.BigEndian.AppendUint32(body, uint32(len(f))), f...)
		case []byte:
			body = append(body, f...)
		}
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func (c *sftpClient) ask(kind byte, fields ...any) (byte, []byte) {
	c.t.Helper()
	if _, err := c.to.Write(packet(kind, fields...)); err != nil {
		c.t.Fatal(err)
	}
	return c.hear()
}

func (c *sftpClient) hear() (byte, []byte) {
	c.t.Helper()
	var head [5]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		c.t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint32(head[:])-1)
	if _, err := io.ReadFull(c.in, body); err != nil {
		c.t.Fatal(err)
	}
	return head[4], body
}

func (c *sftpClient) status(kind byte, fields ...any) uint32 {
	c.t.Helper()
	answer, body := c.ask(kind, fields...)
	if answer != sftpStatus {
		c.t.Fatalf("answer %d to request %d is no status", answer, kind)
	}
	return binary.BigEndian.Uint32(body[4:])
}

func (c *sftpClient) open(name string, flags int) string {
	c.t.Helper()
	kind, body := c.ask(sftpOpen, 1, name, flags, 0)
	if kind != sftpHandle {
		c.t.Fatalf("%s was not opened: %q", name, body)
	}
	return string(body[8:])
}

func TestSftpReadsAndWritesAtAnyPlace(t *testing.T) {
	c, ended := startSftp(t)
	if kind, _ := c.ask(sftpInit, 3); kind != sftpVersionAnswer {
		t.Fatalf("the greeting is %d", kind)
	}
	file := c.open("f", sftpReads|sftpWrites|sftpCreates)
	if code := c.status(sftpWrite, 2, file, uint64(3), "def"); code != sftpOK {
		t.Fatalf("write: %d", code)
	}
	if code := c.status(sftpWrite, 3, file, uint64(0), "abc"); code != sftpOK {
		t.Fatalf("write: %d", code)
	}
	kind, body := c.ask(sftpRead, 4, file, uint64(2), 100)
	if kind != sftpDataAnswer || string(body[8:]) != "cdef" {
		t.Fatalf("read %d %q", kind, body)
	}
	if code := c.status(sftpRead, 5, file, uint64(6), 100); code != sftpEOF {
		t.Fatalf("a read at the end: %d", code)
	}
	if code := c.status(sftpClose, 6, file); code != sftpOK {
		t.Fatalf("close: %d", code)
	}
	if code := c.status(sftpRead, 7, file, uint64(0), 1); code != sftpNoFile {
		t.Fatalf("a read of what was closed: %d", code)
	}
	// Its own rename replaces nothing, OpenSSH's does.
	c.status(sftpClose, 8, c.open("g", sftpWrites|sftpCreates))
	if code := c.status(sftpRename, 9, "f", "g"); code != sftpFailure {
		t.Fatalf("a rename over another file: %d", code)
	}
	if code := c.status(sftpExtended, 10, "posix-rename@openssh.com", "f", "g"); code != sftpOK {
		t.Fatalf("posix-rename: %d", code)
	}
	c.to.(*io.PipeWriter).Close()
	if code := <-ended; code != 0 {
		t.Fatalf("it ended with %d", code)
	}
}

func TestSftpTellsDirectoriesAndLinks(t *testing.T) {
	c, _ := startSftp(t)
	c.ask(sftpInit, 3)
	c.status(sftpMkdir, 1, "d", 4, 0o750)
	if code := c.status(sftpSymlink, 2, "d", "l"); code != sftpOK {
		t.Fatalf("symlink: %d", code)
	}
	kind, body := c.ask(sftpRealpath, 3, "l/new")
	if home, _ := filepath.EvalSymlinks(os.Getenv("HOME")); kind != sftpNames || !strings.Contains(string(body), home+"/d/new") {
		t.Fatalf("realpath: %d %q", kind, body)
	}
	kind, body = c.ask(sftpOpendir, 4, ".")
	if kind != sftpHandle {
		t.Fatalf("opendir: %q", body)
	}
	handle := string(body[8:])
	kind, body = c.ask(sftpReaddir, 5, handle)
	if kind != sftpNames || binary.BigEndian.Uint32(body[4:]) != 4 || !bytes.Contains(body, []byte("drwxr-x---")) || !bytes.Contains(body, []byte("lrwxrwxrwx")) {
		t.Fatalf("readdir: %d %q", kind, body)
	}
	if code := c.status(sftpReaddir, 6, handle); code != sftpEOF {
		t.Fatalf("readdir at the end: %d", code)
	}
	// Times of the link, not of where it leads.
	if code := c.status(sftpExtended, 7, "lsetstat@openssh.com", "l", sftpHasTimes, 1000, 1000); code != sftpOK {
		t.Fatalf("lsetstat: %d", code)
	}
	if st, err := os.Stat("d"); err != nil || st.ModTime().Unix() == 1000 {
		t.Fatalf("the directory's time was set: %v", err)
	}
}

func TestSftpAnswersWhatMakesNoSense(t *testing.T) {
	c, _ := startSftp(t)
	c.ask(sftpInit, 3)
	for name, want := range map[string]struct {
		packet []byte
		code   uint32
	}{
		"an unknown request":      {packet(99, 1), sftpUnsupported},
		"an unknown extension":    {packet(sftpExtended, 1, "what@example.com"), sftpUnsupported},
		"a cut request":           {packet(sftpStat, 1, 100), sftpBad},
		"a path with a NUL":       {packet(sftpStat, 1, "a\x00b"), sftpBad},
		"no such file":            {packet(sftpStat, 1, "none"), sftpNoFile},
		"a handle of nothing":     {packet(sftpRead, 1, "\x00\x00\x00\x09", uint64(0), 1), sftpNoFile},
		"a handle of other bytes": {packet(sftpRead, 1, "xyz", uint64(0), 1), sftpNoFile},
		"a write past all ends":   {packet(sftpWrite, 1, c.open("f", sftpWrites|sftpCreates), ^uint64(0), "x"), sftpBad},
	} {
		if _, err := c.to.Write(want.packet); err != nil {
			t.Fatal(err)
		}
		kind, body := c.hear()
		if kind != sftpStatus || binary.BigEndian.Uint32(body[4:]) != want.code {
			t.Errorf("%s: %d %v", name, kind, body)
		}
	}
}

func TestSftpGivesUpWhenPacketsEndNowhere(t *testing.T) {
	for _, bytes := range [][]byte{{0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 0}, packet(sftpStat, 1, "x"), {0, 0, 0, 9, sftpInit}} {
		if code := serveSftp(strings.NewReader(string(bytes)), io.Discard); code != 1 {
			t.Errorf("%v: it ended with %d", bytes, code)
		}
	}
}
