package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strings"
	"syscall"
	"time"
)

// forkHooks is where a sandbox keeps the programs that are run in each fork of it, as root, in the order of their names.
const forkHooks = "/etc/corral/fork.d"

// hooksTime is how long all hooks together may take; then those that still run are killed.
const hooksTime = 30 * time.Second

// hooksTold and hookTold bound the answer: so many hooks, and so many bytes about each.
const (
	hooksTold = 64
	hookTold  = 1024
)

// lastWords is how long output is waited for when a hook has ended and something it started goes on.
const lastWords = 100 * time.Millisecond

const bootID = "/proc/sys/kernel/random/boot_id"

type restoredArgs struct {
	named
	Hostname string      `json:"hostname"`
	Files    []claimFile `json:"files"`
	Env      [][]byte    `json:"env"` // null: as it is
	Fork     bool        `json:"fork"`
}

type restoredAnswer struct {
	Failed []string `json:"failed"`
}

// restored is the first request after a memory was brought back: what has changed around the sandbox is told, and a fork gets an identity of its own before
// anybody else can use it.
func restored(_ *link, args *restoredArgs) (any, error) {
	if !claimed.Load() {
		return nil, failed(syscall.EPERM, "restored")
	}
	links[1].returned(args.Fork)
	if err := syscall.Sethostname([]byte(args.Hostname)); err != nil {
		return nil, failed(err, args.Hostname)
	}
	for _, f := range args.Files {
		if err := f.write(); err != nil {
			return nil, err
		}
	}
	if args.Env != nil {
		claimedEnv.Store(&args.Env)
	}
	answer := restoredAnswer{Failed: []string{}}
	if !args.Fork {
		return answer, nil
	}
	if err := newIdentity(); err != nil {
		return nil, err
	}
	answer.Failed = runHooks()
	return answer, nil
}

// returned forgets what nobody outside has any more of the link of ports: in a fork all of it, else what was offered to the sandbox, which ends with a pause.
// Until it is greeted again nobody is there to be told.
func (l *link) returned(fork bool) {
	l.open.Store(false)
	for _, c := range l.openChannels() {
		if fork || c.kind == "listen" || c.kind == "accept" {
			l.forget(c)
		}
	}
}

// newIdentity gives a fork what must be no other machine's: its boot id, its machine id and its SSH host keys. What programs keep in their memory is theirs to change:
// hooks tell them.
func newIdentity() error {
	if err := newBootID(); err != nil {
		return err
	}
	for _, file := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		var st syscall.Stat_t
		// A link leads to the first, an empty one is filled at the first boot.
		if syscall.Lstat(file, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFREG && st.Size > 0 {
			if err := (&claimFile{Path: []byte(file), Content: []byte(randomHex() + "\n"), Mode: &st.Mode}).write(); err != nil {
				return err
			}
		}
	}
	return newHostKeys()
}

// newBootID covers what the kernel says, which is the same in all that come from one memory.
func newBootID() error {
	if _, err := os.Stat(bootID); err != nil {
		return nil // a kernel without one
	}
	h := randomHex()
	id := fmt.Sprintf("%s-%s-4%s-a%s-%s\n", h[:8], h[8:12], h[13:16], h[17:20], h[20:])
	cover := corralDir + "/boot_id"
	_, err := os.Lstat(cover)
	covered := err == nil
	if err := os.WriteFile(cover, []byte(id), 0o444); err != nil {
		return err
	}
	if covered {
		return nil // a fork of a fork
	}
	return failed(syscall.Mount(cover, bootID, "", syscall.MS_BIND, ""), bootID)
}

// newHostKeys replaces the SSH host keys if there are any. An sshd that runs has read the old ones; a hook may restart it.
func newHostKeys() error {
	keys, err := os.ReadDir("/etc/ssh")
	if err != nil {
		return nil // no SSH
	}
	found := false
	for _, key := range keys {
		if name := key.Name(); strings.HasPrefix(name, "ssh_host_") && (strings.HasSuffix(name, "_key") || strings.HasSuffix(name, "_key.pub")) {
			found = true
			if err := os.Remove("/etc/ssh/" + name); err != nil {
				return err
			}
		}
	}
	const keygen = "/usr/bin/ssh-keygen"
	if _, err := os.Stat(keygen); !found || err != nil {
		return nil
	}
	if why := runHook(keygen, []string{"ssh-keygen", "-A"}, time.Now().Add(hooksTime)); why != "" {
		logf("%s", why)
	}
	return nil
}

func randomHex() string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err)
	}
	return hex.EncodeToString(b[:])
}

// runHooks runs what is executable in the directory, one after the other, and returns what is to be said of those that failed.
func runHooks() []string {
	told := []string{}
	entries, err := os.ReadDir(forkHooks)
	if err != nil {
		return told // there are none
	}
	names := []string{}
	for _, entry := range entries {
		if info, err := os.Stat(forkHooks + "/" + entry.Name()); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			names = append(names, entry.Name())
		}
	}
	sort.Strings(names)
	end := time.Now().Add(hooksTime)
	for _, name := range names {
		if why := runHook(path.Join(forkHooks, name), []string{name}, end); why != "" {
			logf("%s", why)
			if len(told) < hooksTold {
				told = append(told, why[:min(len(why), hookTold)])
			}
		}
	}
	return told
}

// runHook runs a program as root, in a group of its own, and waits for it; it returns what went wrong, with what the program said of it.
func runHook(program string, argv []string, until time.Time) string {
	status, said, err := runToEnd(program, argv, until)
	said = strings.TrimSpace(said)
	switch {
	case err != nil:
		return fmt.Sprintf("%s: %v", program, err)
	case status.Signaled():
		return fmt.Sprintf("%s: ended by signal %d: %s", program, status.Signal(), said)
	case status.ExitStatus() != 0:
		return fmt.Sprintf("%s: exit status %d: %s", program, status.ExitStatus(), said)
	}
	return ""
}

// runToEnd returns also the beginning of what was written to stdout and stderr. A program that still runs at `until` is killed, with all it started.
func runToEnd(program string, argv []string, until time.Time) (syscall.WaitStatus, string, error) {
	who, err := lookUser("0")
	if err != nil {
		return 0, "", err
	}
	env, err := environ(who, false, defaultEnv())
	if err != nil {
		return 0, "", err
	}
	group, err := groups.take()
	if err != nil {
		return 0, "", err
	}
	defer groups.give(group, false)
	output, theirs, err := os.Pipe()
	if err != nil {
		return 0, "", err
	}
	defer output.Close()
	ended := make(chan end, 1)
	c := &child{ended: func(e end) { ended <- e }}
	fd := theirs.Fd() // blocking from here on, as programs expect
	p, err := newProgram(program, argv, env, "/", [3]uintptr{nullDevice, fd, fd})
	if err == nil {
		err = children.start(c, func() (int, error) { return rootSpawner.spawn(group, p) })
	}
	theirs.Close()
	if err != nil {
		return 0, "", err
	}
	said := make(chan string, 1)
	go func() {
		text := make([]byte, hookTold)
		n, _ := io.ReadFull(output, text)
		said <- string(text[:n])
		_, _ = io.Copy(io.Discard, output)
	}()
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	var e end
	select {
	case e = <-ended:
	case <-timer.C:
		if err := children.signal(c, syscall.SIGKILL); err != nil {
			logf("%s: %v", program, err)
		}
		_ = syscall.Kill(-c.pid, syscall.SIGKILL) // its group, if there is more of it
		e = <-ended
	}
	// What it left running may keep the pipe.
	if err := output.SetReadDeadline(time.Now().Add(lastWords)); err != nil {
		return e.status, "", err
	}
	return e.status, <-said, nil
}
