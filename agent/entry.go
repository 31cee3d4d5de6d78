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

func newEntry(at string, st *syscall.Stat_t) *entry {
	e := &entry{
		Name: []byte(path.Base(at)), Path: []byte(at), Type: fileType(st.Mode), Size: st.Size, Mode: st.Mode & 0o7777,
		UID: st.Uid, GID: st.Gid, MTime: float64(st.Mtim.Sec) + float64(st.Mtim.Nsec)/1e9,
	}
	if name := passwd.name(st.Uid); name != "" {
		e.User = &name
	}
	if name := group.name(st.Gid); name != "" {
		e.Group = &name
	}
	if e.Type == "symlink" {
		target, err := os.Readlink(at)
		if err == nil {
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
