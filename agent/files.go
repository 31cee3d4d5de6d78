package main

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"unsafe"
)

type mkdirArgs struct {
	named
	Path    []byte  `json:"path"`
	Mode    *uint32 `json:"mode"`
	Parents bool    `json:"parents"`
	User    *string `json:"user"`
}

// mkdir answers the request of that name.
func mkdir(_ *link, args *mkdirArgs) (any, error) {
	at, err := absolute(args.Path)
	if err != nil {
		return nil, err
	}
	owner, err := ownerOf(args.User)
	if err != nil {
		return nil, err
	}
	mode := uint32(0o755)
	if args.Mode != nil {
		mode = *args.Mode & 0o7777
	}
	if args.Parents {
		return nil, makeDirs(at, mode, owner)
	}
	return nil, makeDir(at, mode, owner)
}

type removeArgs struct {
	named
	Path      []byte `json:"path"`
	Recursive bool   `json:"recursive"`
	MissingOK bool   `json:"missing_ok"`
}

// remove answers the request of that name. Without `recursive` a directory must be empty.
func remove(_ *link, args *removeArgs) (any, error) {
	at, err := absolute(args.Path)
	if err != nil {
		return nil, err
	}
	if path.Clean(at) == "/" {
		return nil, failed(syscall.EBUSY, "/")
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(at, &st); err != nil {
		if err == syscall.ENOENT && args.MissingOK {
			return nil, nil
		}
		return nil, failed(err, at)
	}
	if args.Recursive {
		return nil, os.RemoveAll(at)
	}
	if st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return nil, failed(syscall.Rmdir(at), at)
	}
	return nil, failed(syscall.Unlink(at), at)
}

type moveArgs struct {
	named
	From      []byte `json:"from"`
	To        []byte `json:"to"`
	Overwrite bool   `json:"overwrite"`
}

// move answers the request of that name.
func move(_ *link, args *moveArgs) (any, error) {
	from, err := absolute(args.From)
	if err != nil {
		return nil, err
	}
	to, err := absolute(args.To)
	if err != nil {
		return nil, err
	}
	err = rename(from, to, args.Overwrite)
	if !errors.Is(err, syscall.EXDEV) {
		if errors.Is(err, syscall.ENOENT) {
			if _, e := os.Lstat(from); e == nil {
				return nil, failed(err, path.Dir(to))
			}
			return nil, failed(err, from)
		}
		return nil, failed(err, to)
	}
	// Another file system, or a directory of the image, which its overlay can't rename.
	if inside(from, to) {
		return nil, failed(syscall.EINVAL, to)
	}
	staged := temporary(to)
	c := newCopier()
	if err := c.copy(from, staged); err != nil {
		os.RemoveAll(staged)
		return nil, err
	}
	if err := rename(staged, to, args.Overwrite); err != nil {
		os.RemoveAll(staged)
		return nil, failed(err, to)
	}
	return nil, os.RemoveAll(from)
}

const renameNoReplace = 1

// rename moves a name, over another one only if told so.
func rename(from, to string, overwrite bool) error {
	if overwrite {
		return syscall.Rename(from, to)
	}
	a, err := syscall.BytePtrFromString(from)
	if err != nil {
		return err
	}
	b, err := syscall.BytePtrFromString(to)
	if err != nil {
		return err
	}
	here := atFDCWD
	_, _, errno := syscall.Syscall6(sysRenameat2, uintptr(here), uintptr(unsafe.Pointer(a)), uintptr(here), uintptr(unsafe.Pointer(b)), renameNoReplace, 0)
	if errno == 0 {
		return nil
	}
	if errno != syscall.EINVAL && errno != syscall.ENOSYS {
		return errno
	}
	// Shared mounts of gVisor 20240729 can't do it at once.
	if _, err := os.Lstat(to); err == nil {
		return syscall.EEXIST
	}
	return syscall.Rename(from, to)
}

// inside tells whether b is a or below it.
func inside(a, b string) bool {
	rel, err := filepath.Rel(a, b)
	return err == nil && rel != ".." && !(len(rel) > 2 && rel[:3] == "../")
}

type chmodArgs struct {
	named
	Path      []byte `json:"path"`
	Mode      uint32 `json:"mode"`
	Recursive bool   `json:"recursive"`
}

// chmod answers the request of that name. Links below the path keep theirs.
func chmod(_ *link, args *chmodArgs) (any, error) {
	at, err := absolute(args.Path)
	if err != nil {
		return nil, err
	}
	if args.Mode > 0o7777 {
		return nil, protocol("mode %#o is more than 07777", args.Mode)
	}
	if args.Recursive { // from below, since the mode may take away the right to look into a directory
		err = eachBelow(at, func(file string, d fs.DirEntry) error {
			if d.Type()&fs.ModeSymlink != 0 {
				return nil
			}
			return failed(syscall.Chmod(file, args.Mode), file)
		})
		if err != nil {
			return nil, err
		}
	}
	return nil, failed(syscall.Chmod(at, args.Mode), at)
}

type chownArgs struct {
	named
	Path      []byte `json:"path"`
	User      string `json:"user"`
	Recursive bool   `json:"recursive"`
}

// chown answers the request of that name. The group is the one given, else the user's own, else it stays.
func chown(_ *link, args *chownArgs) (any, error) {
	at, err := absolute(args.Path)
	if err != nil {
		return nil, err
	}
	who, err := lookUser(args.User)
	if err != nil {
		return nil, err
	}
	gid := int(who.gid)
	if !who.hasGroup {
		gid = -1
	}
	if args.Recursive {
		err = eachBelow(at, func(file string, _ fs.DirEntry) error {
			return failed(syscall.Lchown(file, int(who.uid), gid), file)
		})
		if err != nil {
			return nil, err
		}
	}
	return nil, failed(syscall.Chown(at, int(who.uid), gid), at)
}

// eachBelow calls f for everything below a directory, children first, following no links. A file has nothing below.
func eachBelow(dir string, f func(file string, d fs.DirEntry) error) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range entries {
		file := join(dir, d.Name())
		if d.IsDir() {
			if err := eachBelow(file, f); err != nil {
				return err
			}
		}
		if err := f(file, d); err != nil && !hasCode(err, "ENOENT") { // gone meanwhile
			return err
		}
	}
	return nil
}

type symlinkArgs struct {
	named
	Target []byte `json:"target"`
	Path   []byte `json:"path"`
}

// symlink answers the request of that name.
func symlink(_ *link, args *symlinkArgs) (any, error) {
	at, err := absolute(args.Path)
	if err != nil {
		return nil, err
	}
	return nil, failed(syscall.Symlink(string(args.Target), at), at)
}
