package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Bytes past the guest. What lies on the sandbox's disk the node can read and write through its own mount of the root, which spares the guest all work for
// the bytes. The agent says where a file is, free of links; it keeps to itself what may be done and what becomes of the file.

type directArgs struct {
	named
	Channel uint32 `json:"channel"`
	Offset  uint64 `json:"offset"`
}

type directAnswer struct {
	Path []byte `json:"path"`
}

// direct answers the request of that name: from `offset` on the node writes the file of an upload itself.
func direct(l *link, args *directArgs) (any, error) {
	w, in, err := l.upload(args.Channel)
	if err != nil {
		return nil, err
	}
	if w.staged == "" { // others may have it open, and know its size
		return nil, failed(syscall.EOPNOTSUPP, w.at)
	}
	if !in.waitUsed(args.Offset) {
		return nil, errChannelClosed
	}
	at, err := placeOnDisk(w.file)
	if err != nil {
		return nil, err
	}
	return directAnswer{[]byte(at)}, nil
}

type landedArgs struct {
	named
	Channel uint32 `json:"channel"`
	Size    int64  `json:"size"`
}

// landed answers the request of that name. The sentry takes a file to be as long as it was when only the guest wrote it; setting the length tells it.
func landed(l *link, args *landedArgs) (any, error) {
	w, _, err := l.upload(args.Channel)
	if err != nil {
		return nil, err
	}
	if w.staged == "" || args.Size < 0 {
		return nil, protocol("nothing can have landed on channel %d", args.Channel)
	}
	return nil, failed(asErrno(w.file.Truncate(args.Size)), w.at)
}

// upload finds the file of a `write` that is under way.
func (l *link) upload(id uint32) (*writing, *inlet, error) {
	c := l.channel(id)
	if c == nil || c.kind != "write" {
		return nil, nil, protocol("channel %d is no write", id)
	}
	<-c.ready
	if c.err != nil {
		return nil, nil, c.err
	}
	return c.writing, c.in, nil
}

// placeOnDisk is where the node finds an open file below the sandbox's root. EOPNOTSUPP: nowhere, since something else is mounted there.
func placeOnDisk(file *os.File) (string, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return "", err
	}
	at := ""
	failure := raw.Control(func(fd uintptr) { at, err = realPath(int(fd)) })
	if failure != nil {
		return "", failure
	}
	if err != nil {
		return "", failed(err, file.Name())
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	if !claimed.Load() || !onRoot(string(mounts), at) {
		return "", failed(syscall.EOPNOTSUPP, at)
	}
	return at, nil
}

// onRoot tells whether a path is on the file system of the root, by a mountinfo: the innermost mount above it is the only one at "/".
func onRoot(mounts, at string) bool {
	roots := 0
	for _, line := range strings.Split(mounts, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		switch point := unescape(fields[4]); {
		case point == "/":
			roots++
		case at == point || strings.HasPrefix(at, point+"/"):
			return false
		}
	}
	return roots == 1
}

// unescape undoes the \ooo that mountinfo has for blanks and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
