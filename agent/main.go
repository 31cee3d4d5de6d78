// The guest agent of a Corral sandbox: its init process. It is injected from outside, speaks docs/wire.md on the descriptors it is born with,
// and needs nothing of the image it runs in: no libc, no shell, no /etc/passwd.
//
// Where a byte of stdout travels: a process writes into a pipe, source.go reads it into the memory of an outlet (outlet.go, ring.go), which sends it
// over the link (link.go) and keeps it until the node has acknowledged it.
package main

import (
	"os"
	"os/signal"
	"path"
	"runtime"
	"runtime/debug"
	"syscall"
)

var (
	selfPID   = os.Getpid()
	selfGroup = syscall.Getpgrp()

	// children reaps and signals every process of the sandbox.
	children = newReaper()

	// nullDevice is the stdin of processes without one.
	nullDevice uintptr

	// links are descriptors 0 and 1.
	links []*link

	// heart tells what lives.
	heart *pulse

	// agentIsPlainRoot: what it starts as root needs no other identity.
	agentIsPlainRoot = isPlainRoot()
)

// controlOps are the requests of descriptor 0, relayOps those of descriptor 1. Both know hello.
var (
	controlOps = map[string]operation{
		"ping":      op(ping),
		"warm":      op(warm),
		"claim":     op(claim),
		"channels":  op(listChannels),
		"start":     op(start),
		"signal":    op(sendSignal),
		"resize":    op(resize),
		"close":     op(closeChannel),
		"stat":      op(stat),
		"list":      op(list),
		"mkdir":     op(mkdir),
		"remove":    op(remove),
		"move":      op(move),
		"copy":      op(copyFiles),
		"chmod":     op(chmod),
		"chown":     op(chown),
		"symlink":   op(symlink),
		"glob":      op(glob),
		"read":      op(read),
		"write":     op(write),
		"direct":    op(direct),
		"landed":    op(landed),
		"tar_out":   op(tarOut),
		"tar_in":    op(tarIn),
		"watch":     op(watch),
		"dial":      op(dial),
		"ports":     op(ports),
		"processes": op(processes),
		"volume":    op(volume),
		"usage":     op(usage),
		"quiesce":   op(quiesce),
		"restored":  op(restored),
		"obstacles": op(obstacles),
	}
	relayOps = map[string]operation{
		"ping":     op(ping),
		"channels": op(listChannels),
		"dial":     op(dial),
		"listen":   op(listen),
		"accept":   op(accept),
		"close":    op(closeChannel),
	}
)

func main() {
	switch path.Base(os.Args[0]) {
	case "sudo":
		os.Exit(sudo(os.Args[1:]))
	case sftpName:
		os.Exit(serveSftp(os.Stdin, os.Stdout))
	case nothingName:
		return
	}
	if err := serve(); err != nil {
		logf("agent: %v", err)
		os.Exit(1)
	}
}

// serve is the life of the agent. It ends when the control link does: then nobody can reach the sandbox any more.
func serve() error {
	tune()
	_ = syscall.SetNonblock(2, true) // a log that can't be made to never wait is still better than none
	null, err := syscall.Open("/dev/null", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return failed(err, "/dev/null")
	}
	nullDevice = uintptr(null)
	if kernelMeminfo, err = os.Open(shownMeminfo.path); err != nil {
		return err
	}
	startSpawners()
	if selfPID == 1 {
		if err := prepare(); err != nil {
			return err
		}
		calmXattrs()
	}
	confineUsers()
	control, err := newLink(0, "control", controlOps)
	if err != nil {
		return err
	}
	relay, err := newLink(1, "relay", relayOps)
	if err != nil {
		return err
	}
	links = []*link{control, relay}
	heart = newPulse(control)
	control.greeted = heart.repeat
	go children.run()
	go heart.run()
	go func() {
		if err := relay.serve(); err != nil {
			logf("relay: %v", err)
		}
	}()
	return control.serve()
}

// tune makes the runtime small and quiet. An idle agent makes no system calls at all: everything waits in the kernel.
func tune() {
	// One processor does everything: a thread more to wake for each event costs more than it gains, and system calls run beside it anyway.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(50)
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil {
		files.Cur = min(openFiles, files.Max)
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files) // never more than before
	}
	// Signals that would end the agent, and the sandbox with it. They are caught, not ignored: ignoring would be inherited by every process.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE)
}

func isPlainRoot() bool {
	groups, err := syscall.Getgroups()
	return err == nil && len(groups) == 0 && syscall.Getuid() == 0 && syscall.Getgid() == 0
}
