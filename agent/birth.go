package main

import (
	"os"
	"syscall"
)

// Places of the agent inside the sandbox, all on the guest's own /dev, which is memory.
const (
	corralDir = "/dev/.corral"
	agentCopy = corralDir + "/sudo" // the agent's binary, run as sudo
	volumeDir = "/dev/.vol"         // where the volumes of the host appear
)

// prepare does ahead of the claim whatever doesn't need to know it. The agent is born in a member of the pool, whose root holds nothing but the
// agent, and waits there frozen: time spent here costs nobody anything. It must not look at /rootfs: a name looked up before the host has
// mounted the sandbox's root there stays empty for ever.
func prepare() error {
	for _, m := range []struct{ probe, kind, target string }{
		{"/proc/self", "proc", "/proc"},
		{"/sys/devices", "sysfs", "/sys"},
	} {
		if _, err := os.Lstat(m.probe); err == nil {
			continue
		}
		if err := syscall.Mount(m.kind, m.target, m.kind, 0, ""); err != nil {
			return failed(err, m.target)
		}
	}
	for _, dir := range []string{corralDir, volumeDir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := bindFile("/proc/self/exe", agentCopy); err != nil {
		return err
	}
	if err := os.Symlink(agentCopy, corralDir+"/"+sftpName); err != nil {
		return err
	}
	if err := syscall.Mount("/vol", volumeDir, "", syscall.MS_BIND, ""); err != nil && err != syscall.ENOENT {
		return failed(err, "/vol")
	}
	if err := prepareGroups(); err != nil {
		logf("no control groups: descendants are found by their parents, tasks are limited for ordinary users only: %v", err)
		box, tree, boxTasks, boxUsage = -1, -1, -1, -1
	}
	if err := prepareLimits(); err != nil {
		return err
	}
	var err error
	if sudoListener, err = listenSudo(); err != nil {
		return err
	}
	warmUp()
	return nil
}

// warmUp goes once through what the first requests will need, so that their code is in memory and the decoder knows their types.
func warmUp() {
	for _, warm := range []func() error{
		func() error {
			_, err := decode[helloArgs]([]byte(`{"op":"hello","channels":[{"received":{"1":1}}]}`))
			return err
		},
		func() error {
			_, err := decode[claimArgs]([]byte(`{"op":"claim","files":[{"path":"Lw==","content":"Lw==","mode":1}],"volumes":[{"name":"","target":"Lw=="}],"env":["Lw=="]}`))
			return err
		},
		func() error {
			args, err := decode[startArgs]([]byte(`{"op":"start","argv":["L25vbmU="],"env":["QT1i"],"cwd":"Lw==","user":"0","pty":null}`)) // /none
			if err != nil {
				return err
			}
			p := &process{}
			if err := p.start(args); !hasCode(err, "ENOENT") {
				return err
			}
			return nil
		},
		func() error {
			encodeAnswer(helloAnswer{}, nil)
			encodeAnswer(startAnswer{}, nil)
			mustJSON(exitEvent{})
			return nil
		},
	} {
		if err := warm(); err != nil {
			logf("warming up: %v", err)
		}
	}
}

// bindFile makes source, a file, appear as target, which is made.
func bindFile(source, target string) error {
	f, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	f.Close()
	return failed(syscall.Mount(source, target, "", syscall.MS_BIND, ""), target)
}
