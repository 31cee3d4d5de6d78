package main

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"sort"
	"strconv"
	"strings"
)

// listener is a listening TCP socket.
type listener struct {
	port    uint16
	address netip.Addr
	inode   string
}

const stateListen = "0A"

// listeners reads /proc/net/tcp and tcp6.
func listeners() (all []listener) {
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // no IPv6, or no network at all
		}
		all = append(all, parseListeners(string(text))...)
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].port < all[j].port })
	return all
}

func parseListeners(text string) (all []listener) {
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != stateListen {
			continue
		}
		at, port, _ := strings.Cut(f[1], ":")
		number, err := strconv.ParseUint(port, 16, 16)
		address, ok := parseAddress(at)
		if err != nil || !ok || number == 0 || outside.Contains(address.Unmap()) {
			continue
		}
		all = append(all, listener{uint16(number), address, f[9]})
	}
	return all
}

// parseAddress reads the kernel's notation: 32-bit words, each in the byte order of the machine.
func parseAddress(text string) (netip.Addr, bool) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.Addr{}, false
	}
	for i := 0; i < len(b); i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
	}
	return netip.AddrFromSlice(b)
}

// holder finds who has a socket open.
func holder(inode string) (pid int, name string) {
	want := fmt.Sprintf("socket:[%s]", inode)
	for _, pid := range allPIDs() {
		dir := "/proc/" + strconv.Itoa(pid)
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if target, err := os.Readlink(dir + "/fd/" + fd.Name()); err == nil && target == want {
				s, _ := readStat(pid)
				return pid, s.comm
			}
		}
	}
	return 0, ""
}

type portRecord struct {
	Port    uint16  `json:"port"`
	Address string  `json:"address"`
	PID     *int    `json:"pid"`
	Process *string `json:"process"`
}

type portsAnswer struct {
	Ports []portRecord `json:"ports"`
}

// portsTold bounds an answer: more listening sockets than that are not told.
const portsTold = 1000

// ports answers the request of that name.
func ports(*link, *nothing) (any, error) {
	answer := portsAnswer{Ports: []portRecord{}}
	for _, l := range listeners() {
		if len(answer.Ports) == portsTold {
			break
		}
		r := portRecord{Port: l.port, Address: l.address.String()}
		if pid, name := holder(l.inode); pid != 0 {
			r.PID, r.Process = &pid, &name
		}
		answer.Ports = append(answer.Ports, r)
	}
	return answer, nil
}
