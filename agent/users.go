package main

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// account is who a process runs as, from the guest's own /etc/passwd and /etc/group. There is no other source: no nss, no libc.
type account struct {
	uid, gid uint32
	hasGroup bool     // gid is known, not just 0
	groups   []uint32 // supplementary
	name     string   // empty when the uid has no entry
	home     string
	shell    string
}

// database is a parsed /etc/passwd or /etc/group, read again when the file changes.
type database struct {
	path string

	mu    sync.Mutex
	stamp syscall.Stat_t
	rows  [][]string
}

var (
	passwd = &database{path: "/etc/passwd"}
	group  = &database{path: "/etc/group"}
)

// databaseLimit is the most of such a file that is read, in bytes.
const databaseLimit = 4 << 20

// entries returns the colon-separated rows; none when the file is missing, which is usual in small images.
func (d *database) entries() [][]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var now syscall.Stat_t
	if err := syscall.Stat(d.path, &now); err != nil {
		d.rows, d.stamp = nil, syscall.Stat_t{}
		return nil
	}
	if now.Ino == d.stamp.Ino && now.Dev == d.stamp.Dev && now.Size == d.stamp.Size && now.Mtim == d.stamp.Mtim && now.Ctim == d.stamp.Ctim {
		return d.rows
	}
	d.rows = nil
	if now.Size > databaseLimit {
		logf("%s is larger than 4 MiB and is not read", d.path)
		return nil
	}
	text, err := os.ReadFile(d.path)
	if err != nil {
		logf("%v", err)
		return nil
	}
	for _, line := range strings.Split(string(text), "\n") {
		if fields := strings.Split(line, ":"); len(fields) >= 4 && !strings.HasPrefix(line, "#") {
			d.rows = append(d.rows, fields)
		}
	}
	d.stamp = now
	return d.rows
}

// id finds a row by name and returns its number: the third field of both files.
func (d *database) id(name string) (uint32, bool) {
	for _, row := range d.entries() {
		if row[0] == name {
			if n, err := strconv.ParseUint(row[2], 10, 32); err == nil {
				return uint32(n), true
			}
		}
	}
	return 0, false
}

// name finds a row by number.
func (d *database) name(id uint32) string {
	text := strconv.FormatUint(uint64(id), 10)
	for _, row := range d.entries() {
		if row[2] == text {
			return row[0]
		}
	}
	return ""
}

// lookUser reads a user as the wire writes it: "name", "name:group", "uid" or "uid:gid"; empty is root.
func lookUser(spec string) (*account, error) {
	if spec == "" {
		spec = "0"
	}
	who, groupSpec, hasGroup := strings.Cut(spec, ":")
	a := &account{home: "/", shell: "/bin/sh"}
	row := passwdRow(who)
	if row != nil {
		uid, err1 := strconv.ParseUint(row[2], 10, 32)
		gid, err2 := strconv.ParseUint(row[3], 10, 32)
		if err1 != nil || err2 != nil {
			return nil, &failure{Code: "ENOUSER", Message: "the entry of user " + who + " in /etc/passwd has no number"}
		}
		a.uid, a.gid, a.name, a.hasGroup = uint32(uid), uint32(gid), row[0], true
		if len(row) > 5 && row[5] != "" {
			a.home = row[5]
		}
		if len(row) > 6 && row[6] != "" {
			a.shell = row[6]
		}
	} else {
		uid, err := strconv.ParseUint(who, 10, 32)
		if who == "root" {
			uid, err = 0, nil
		}
		if err != nil || uid == 1<<32-1 {
			return nil, &failure{Code: "ENOUSER", Message: "no user " + who + " in the sandbox's /etc/passwd"}
		}
		a.uid = uint32(uid)
		if uid == 0 {
			a.name, a.home = "root", "/root"
		}
	}
	switch {
	case hasGroup:
		gid, ok := group.id(groupSpec)
		if !ok {
			n, err := strconv.ParseUint(groupSpec, 10, 32)
			if err != nil || n == 1<<32-1 {
				return nil, &failure{Code: "ENOUSER", Message: "no group " + groupSpec + " in the sandbox's /etc/group"}
			}
			gid = uint32(n)
		}
		a.gid, a.hasGroup = gid, true
	case a.uid != 0 && a.name != "":
		a.groups = memberships(a.name, a.gid)
	}
	return a, nil
}

func passwdRow(who string) []string {
	rows := passwd.entries()
	for _, row := range rows {
		if row[0] == who {
			return row
		}
	}
	for _, row := range rows {
		if row[2] == who {
			return row
		}
	}
	return nil
}

// memberships lists the groups that name a user as a member.
func memberships(name string, primary uint32) (ids []uint32) {
	for _, row := range group.entries() {
		for _, member := range strings.Split(row[3], ",") {
			if member != name {
				continue
			}
			if id, err := strconv.ParseUint(row[2], 10, 32); err == nil && uint32(id) != primary {
				ids = append(ids, uint32(id))
			}
		}
	}
	return ids
}
