package main

import (
	"os"
	"path"
	"syscall"
)

// entry describes a file as the wire does.
type entry struct {
	Name   []byte  `json:"name"`
	Path   []byte  `json:"path"`
	Type   string  `json:"type"`
	Size   int64   `json:"size"`
	Mode   uint32  `json:"mode"`
	UID    uint32  `json:"uid"`
	GID    uint32  `json:"gid"`
	User   *string `json:"user"`
	Group  *string `json:"group"`
	MTime  float64 `json:"mtime"`
	Target []byte  `json:"target,omitempty"`
}

// names caches what users and groups are called, for one request.
type names struct{ users, groups map[uint32]*string }

func newNames() *names { return &names{map[uint32]*string{}, map[uint32]*string{}} }

func (n *names) of(known map[uint32]*string, d *database, id uint32) *string {
	name, ok := known[id]
	if !ok {
		if s := d.name(id); s != "" {
			name = &s
		}
		known[id] = name
	}
	return name
}

func (n *names) entry(at string, st *syscall.Stat_t) *entry {
	e := &entry{
		Name: []byte(path.Base(at)), Path: []byte(at), Type: fileType(st.Mode), Size: st.Size, Mode: st.Mode & 0o7777,
		UID: st.Uid, GID: st.Gid, MTime: float64(st.Mtim.Sec) + float64(st.Mtim.Nsec)/1e9,
	}
	e.User, e.Group = n.of(n.users, passwd, st.Uid), n.of(n.groups, group, st.Gid)
	if e.Type == "symlink" {
		if target, err := os.Readlink(at); err == nil {
			e.Target = []byte(target)
		}
	}
	return e
}

func fileType(mode uint32) string {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return "file"
	case syscall.S_IFDIR:
		return "directory"
	case syscall.S_IFLNK:
		return "symlink"
	case syscall.S_IFIFO:
		return "fifo"
	case syscall.S_IFSOCK:
		return "socket"
	default:
		return "device"
	}
}

// describeFile is the entry of a path, behind links or not.
func describeFile(at string, follow bool) (*entry, error) {
	var st syscall.Stat_t
	stat := syscall.Lstat
	if follow {
		stat = syscall.Stat
	}
	if err := stat(at, &st); err != nil {
		return nil, failed(err, at)
	}
	return newNames().entry(at, &st), nil
}

type statArgs struct {
	named
	Path   []byte `json:"path"`
	Follow bool   `json:"follow"`
}

type entryAnswer struct {
	Entry *entry `json:"entry"`
}

// stat answers the request of that name.
func stat(_ *link, args *statArgs) (any, error) {
	at, err := absolute(args.Path)
	if err != nil {
		return nil, err
	}
	e, err := describeFile(at, args.Follow)
	return entryAnswer{e}, err
}
