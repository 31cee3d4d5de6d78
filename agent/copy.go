package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path"
	"syscall"
)

type copyArgs struct {
	named
	From      []byte `json:"from"`
	To        []byte `json:"to"`
	Recursive bool   `json:"recursive"`
	Overwrite bool   `json:"overwrite"`
}

// copyFiles answers the request `copy`. `to` is the copy itself, not a directory to put it in. Overwriting, directories are merged.
func copyFiles(_ *link, args *copyArgs) (any, error) {
	from, err := absolute(args.From)
	if err != nil {
		return nil, err
	}
	to, err := absolute(args.To)
	if err != nil {
		return nil, err
	}
	var source, target syscall.Stat_t
	if err := syscall.Lstat(from, &source); err != nil {
		return nil, failed(err, from)
	}
	if source.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		if !args.Recursive {
			return nil, failed(syscall.EISDIR, from)
		}
		if inside(from, to) {
			return nil, failed(syscall.EINVAL, to)
		}
	}
	if err := syscall.Lstat(to, &target); err == nil {
		if !args.Overwrite {
			return nil, failed(syscall.EEXIST, to)
		}
		if target.Dev == source.Dev && target.Ino == source.Ino {
			return nil, nil
		}
	}
	return nil, newCopier().copy(from, to)
}

// copier copies a tree with modes, owners, times, links and hard links.
type copier struct {
	linked map[[2]uint64]string // the copies of files that have several names
	buffer []byte
}

func newCopier() *copier {
	return &copier{linked: map[[2]uint64]string{}, buffer: make([]byte, 256<<10)}
}

// copy copies one file or tree, over what is there.
func (c *copier) copy(from, to string) error {
	var st syscall.Stat_t
	if err := syscall.Lstat(from, &st); err != nil {
		return failed(err, from)
	}
	kind := st.Mode & syscall.S_IFMT
	if kind == syscall.S_IFDIR {
		return c.directory(from, to, &st)
	}
	key := [2]uint64{st.Dev, st.Ino}
	staged := temporary(to)
	var err error
	if first := c.linked[key]; first != "" && st.Nlink > 1 {
		err = failed(syscall.Link(first, staged), to)
	} else {
		err = c.special(from, staged, kind, &st)
		if err == nil {
			err = dress(staged, &st)
		}
		c.linked[key] = to
	}
	if err == nil {
		err = failed(syscall.Rename(staged, to), to)
	}
	if err != nil {
		if e := syscall.Unlink(staged); e != nil && e != syscall.ENOENT {
			logf("%s: %v", staged, e)
		}
	}
	return err
}

// special makes whatever isn't a directory.
func (c *copier) special(from, to string, kind uint32, st *syscall.Stat_t) error {
	switch kind {
	case syscall.S_IFREG:
		return c.content(from, to)
	case syscall.S_IFLNK:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return failed(syscall.Symlink(target, to), to)
	case syscall.S_IFIFO:
		return failed(syscall.Mkfifo(to, st.Mode&0o7777), to)
	default:
		return failed(syscall.Mknod(to, st.Mode, int(st.Rdev)), to)
	}
}

func (c *copier) content(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	for {
		n, err := in.Read(c.buffer)
		if err == io.EOF {
			return out.Close()
		}
		if err == nil {
			_, err = out.Write(c.buffer[:n])
		}
		if err != nil {
			return errors.Join(err, out.Close())
		}
	}
}

func (c *copier) directory(from, to string, st *syscall.Stat_t) error {
	if err := syscall.Mkdir(to, 0o700); err != nil {
		if e := checkDir(to); err != syscall.EEXIST || e != nil {
			return failed(err, to)
		}
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, d := range entries {
		if err := c.copy(join(from, d.Name()), join(to, d.Name())); err != nil {
			return err
		}
	}
	return dress(to, st)
}

// dress gives a file owner, mode and times.
func dress(at string, st *syscall.Stat_t) error {
	if err := syscall.Lchown(at, int(st.Uid), int(st.Gid)); err != nil {
		return failed(err, at)
	}
	if st.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		return setTimes(atFDCWD, at, st.Atim, st.Mtim)
	}
	if err := syscall.Chmod(at, st.Mode&0o7777); err != nil {
		return failed(err, at)
	}
	return setTimes(atFDCWD, at, st.Atim, st.Mtim)
}

// temporary names a file beside another one, on the same file system.
func temporary(at string) string {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // getrandom doesn't fail
	}
	return join(path.Dir(at), ".corral-"+hex.EncodeToString(b[:]))
}
