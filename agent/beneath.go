package main

import (
	"path"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// beneath resolves names below a directory and never leaves it: each part is opened on its own without following links, and links are followed
// by hand as long as they stay inside. (gVisor 20240729 has no openat2.)
type beneath struct {
	root  string // absolute, without links
	fd    int
	owner *account // of directories that are made on the way; nil is root

	lastDir string // the directory opened last, since files come directory by directory
	lastFD  int
}

func openBeneath(root string, owner *account) (*beneath, error) {
	fd, err := syscall.Open(root, oPath|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, failed(err, root)
	}
	real, err := realPath(fd)
	if err != nil {
		syscall.Close(fd)
		return nil, failed(err, root)
	}
	return &beneath{root: real, fd: fd, owner: owner, lastFD: -1}, nil
}

// realPath is where a descriptor is, free of links.
func realPath(fd int) (string, error) {
	var b [4096]byte
	n, err := readlinkat(atFDCWD, "/proc/self/fd/"+strconv.Itoa(fd), b[:])
	return string(b[:max(n, 0)]), err
}

func (b *beneath) close() {
	b.forgetLast()
	syscall.Close(b.fd)
}

func (b *beneath) forgetLast() {
	if b.lastFD >= 0 {
		syscall.Close(b.lastFD)
	}
	b.lastFD, b.lastDir = -1, ""
}

// cleanName refuses names that are absolute or climb; the result is empty for the root itself.
func cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", protocol("name %q has a NUL byte", name)
	}
	if path.IsAbs(name) {
		return "", protocol("name %q is absolute", name)
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", protocol("name %q leads out of its tree", name)
		}
	}
	if name = path.Clean(name); name == "." {
		return "", nil
	}
	return name, nil
}

// parent opens the directory that holds a clean name, and returns the name's last part. make creates missing directories. The descriptor
// stays b's and is good until the next call.
func (b *beneath) parent(name string, make bool) (dir int, last string, err error) {
	at, last := path.Split(name)
	at = strings.TrimSuffix(at, "/")
	if at == "" {
		return b.fd, last, nil
	}
	if b.lastFD >= 0 && b.lastDir == at {
		return b.lastFD, last, nil
	}
	fd, err := b.open(at, make)
	if err != nil {
		return -1, "", failed(err, join(b.root, at))
	}
	b.forgetLast()
	b.lastFD, b.lastDir = fd, at
	return fd, last, nil
}

// open walks to a directory below the root, through links that stay inside. make creates what is missing. The descriptor is the caller's.
func (b *beneath) open(name string, make bool) (int, error) {
	first, err := duplicate(b.fd)
	if err != nil {
		return -1, err
	}
	stack := []int{first} // the way from the root: ".." of a link goes back along it
	defer func() {
		for _, fd := range stack {
			syscall.Close(fd)
		}
	}()
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		here := stack[len(stack)-1]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(stack) == 1 {
				return -1, syscall.EXDEV
			}
			syscall.Close(here)
			stack = stack[:len(stack)-1]
			continue
		}
		fd, err := openDir(here, part)
		if err == syscall.ENOENT && make {
			if err = b.makeDir(here, part); err == nil {
				fd, err = openDir(here, part)
			}
		}
		if err == nil {
			stack = append(stack, fd)
			continue
		}
		if err != syscall.ELOOP && err != syscall.ENOTDIR {
			return -1, err
		}
		target, e := readLink(here, part)
		if e != nil {
			return -1, syscall.ENOTDIR // no link but a file
		}
		if links++; links > linkLimit {
			return -1, syscall.ELOOP
		}
		if path.IsAbs(target) {
			if !inside(b.root, path.Clean(target)) {
				return -1, syscall.EXDEV
			}
			target = strings.TrimPrefix(path.Clean(target), b.root)
			for _, fd := range stack[1:] {
				syscall.Close(fd)
			}
			stack = stack[:1]
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	fd := stack[len(stack)-1]
	stack = stack[:len(stack)-1]
	return fd, nil
}

// openDir opens a directory that is no link. O_PATH is what makes gVisor 20240729 refuse links: with O_DIRECTORY|O_NOFOLLOW alone it follows them.
func openDir(at int, name string) (int, error) {
	return syscall.Openat(at, name, oPath|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
}

func (b *beneath) makeDir(at int, name string) error {
	err := syscall.Mkdirat(at, name, 0o755)
	if err == nil && b.owner != nil {
		err = syscall.Fchownat(at, name, int(b.owner.uid), int(b.owner.gid), atSymlinkNoFollow)
	}
	if err == syscall.EEXIST {
		return nil
	}
	return err
}

func duplicate(fd int) (int, error) {
	n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

func readLink(at int, name string) (string, error) {
	var b [4096]byte
	n, err := readlinkat(at, name, b[:])
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

func readlinkat(at int, name string, b []byte) (int, error) {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	n, _, errno := syscall.Syscall6(syscall.SYS_READLINKAT, uintptr(at), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
