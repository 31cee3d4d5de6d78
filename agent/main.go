// The guest agent of a Corral sandbox: its init process. It is injected from outside, speaks docs/wire.md on the descriptors it is born with,
// and needs nothing of the image it runs in: no libc, no shell, no /etc/passwd.
package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
)

// children reaps and signals every process of the sandbox.
var children *reaper

// nullDevice is the stdin of processes without one.
var nullDevice *os.File

var selfPID = os.Getpid()

var controlOps = map[string]operation{
	"ping": op(ping), "claim": op(claim),
	"volume":   op(volume),
	"channels": op(listChannels),
	"start":    op(start),
	"signal":   op(signal),
	"resize":   op(resize),
	"close":    op(closeChannel),
	"stat":     op(stat),
	"list":     op(list),
	"mkdir":    op(mkdir),
	"remove":   op(remove),
	"move":     op(move),
	"copy":     op(copyFiles),
	"chmod":    op(chmod),
	"chown":    op(chown),
	"symlink":  op(symlink),
	"glob":     op(glob),
	"read":     op(read),
	"write":    op(write),
}

func main() {
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(50)
	_ = syscall.SetNonblock(2, true)
	nullDevice, _ = os.OpenFile("/dev/null", os.O_RDWR, 0)
	children = newReaper(func(bool) {})
	go children.run()
	confineUsers()
	if selfPID == 1 {
		if err := prepare(); err != nil {
			logf("not ready for a claim: %v", err)
		}
	}
	l, err := newLink(0, "control", controlOps)
	if err != nil {
		logf("control link: %v", err)
		os.Exit(1)
	}
	if err := l.serve(); err != nil {
		logf("control link: %v", err)
	}
}
