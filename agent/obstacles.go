package main

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// obstacle is something that the sandbox's kernel can't save.
type obstacle struct {
	Kind    string `json:"kind"` // connection or deleted_file
	PID     int    `json:"pid"`
	Process string `json:"process"`
	What    []byte `json:"what"`
}

type obstaclesAnswer struct {
	Obstacles []obstacle `json:"obstacles"`
}

// obstaclesTold bounds the answer.
const obstaclesTold = 64

type obstaclesArgs struct {
	named
	Files bool `json:"files"`
}

// obstacles answers the request of that name: connections to elsewhere, and with `files` also files of the sandbox's disk and volumes that are open and deleted, which takes
// a look at every descriptor of every process.
func obstacles(_ *link, args *obstaclesArgs) (any, error) {
	all := connections()
	if args.Files {
		all = append(all, deletedFiles()...)
	}
	return obstaclesAnswer{all[:min(len(all), obstaclesTold)]}, nil
}

// States of a TCP socket in /proc/net/tcp that have no other end yet, or no more.
const (
	tcpTimeWait = "06"
	tcpClose    = "07"
)

// connections lists those to other machines. Whose they are is found out for the first ones only.
func connections() []obstacle {
	found := []obstacle{}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // no IPv6, or no network at all
		}
		for _, line := range strings.Split(string(text), "\n") {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] == stateListen || f[3] == tcpTimeWait || f[3] == tcpClose {
				continue
			}
			at, port, _ := strings.Cut(f[2], ":")
			address, ok := parseAddress(at)
			number, err := strconv.ParseUint(port, 16, 16)
			if !ok || err != nil || address.Unmap().IsLoopback() || address.IsUnspecified() || len(found) == obstaclesTold {
				continue
			}
			pid, name := holder(f[9])
			found = append(found, obstacle{"connection", pid, name, []byte(netip.AddrPortFrom(address.Unmap(), uint16(number)).String())})
		}
	}
	return found
}

const deletedMark = " (deleted)"

// tmpfsMagic is what statfs says of a file system in memory (linux/magic.h).
const tmpfsMagic = 0x01021994

// deletedFiles lists descriptors and working directories on the sandbox's disk and its volumes whose names are gone.
func deletedFiles() []obstacle {
	found := []obstacle{}
	for _, pid := range allPIDs() {
		dir := "/proc/" + strconv.Itoa(pid)
		links := []string{dir + "/cwd"}
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue // it has ended
		}
		for _, fd := range fds {
			links = append(links, dir+"/fd/"+fd.Name())
		}
		for _, link := range links {
			target, err := os.Readlink(link)
			if err != nil || !strings.HasSuffix(target, deletedMark) {
				continue
			}
			var fs syscall.Statfs_t
			if syscall.Statfs(link, &fs) == nil && fs.Type == tmpfsMagic {
				continue // in memory, which is saved
			}
			s, _ := readStat(pid)
			found = append(found, obstacle{"deleted_file", pid, s.comm, []byte(strings.TrimSuffix(target, deletedMark))})
		}
	}
	return found
}
