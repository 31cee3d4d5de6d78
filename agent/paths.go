package main

import (
	"bytes"
	"os"
	"path"
	"strings"
	"syscall"
)

// absolute checks a path of the wire and returns it without slashes and "." at its end. ".." is left alone: behind a link it means something else.
func absolute(p []byte) (string, error) {
	if len(p) == 0 || p[0] != '/' {
		return "", protocol("path %q is not absolute", p)
	}
	if bytes.IndexByte(p, 0) >= 0 {
		return "", protocol("path %q has a NUL byte", p)
	}
	s := string(p)
	for len(s) > 1 && (strings.HasSuffix(s, "/") || strings.HasSuffix(s, "/.")) {
		s = strings.TrimSuffix(strings.TrimSuffix(s, "."), "/")
		if s == "" {
			s = "/"
		}
	}
	return s, nil
}

func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}

// linkLimit is how many links in a row are followed, as in Linux.
const linkLimit = 40

// finalTarget follows links at the end of a path, also to a name that doesn't exist yet.
func finalTarget(at string) (string, error) {
	for range [linkLimit]struct{}{} {
		target, err := os.Readlink(at)
		if err != nil {
			return at, nil // no link, or nothing there: whoever uses the path finds out
		}
		if !path.IsAbs(target) {
			target = join(path.Dir(at), target)
		}
		at = target
	}
	return "", failed(syscall.ELOOP, at)
}

// parents makes the missing directories above a path, for a user.
func parents(at string, owner *account) error {
	return makeDirs(path.Dir(at), 0o755, owner)
}

// makeDirs makes a directory and those above it. One that exists is fine.
func makeDirs(dir string, mode uint32, owner *account) error {
	if err := checkDir(dir); err != syscall.ENOENT {
		return failed(err, dir)
	}
	if err := makeDirs(path.Dir(dir), 0o755, owner); err != nil {
		return err
	}
	err := makeDir(dir, mode, owner)
	if hasCode(err, "EEXIST") { // somebody else made it meanwhile, or a dangling link is there
		return failed(checkDir(dir), dir)
	}
	return err
}

// checkDir tells whether a directory is there.
func checkDir(dir string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return syscall.ENOTDIR
	}
	return nil
}

func makeDir(dir string, mode uint32, owner *account) error {
	if err := syscall.Mkdir(dir, mode); err != nil {
		return failed(err, dir)
	}
	if owner != nil && (owner.uid != 0 || owner.gid != 0) {
		if err := syscall.Lchown(dir, int(owner.uid), int(owner.gid)); err != nil {
			return failed(err, dir)
		}
	}
	return failed(syscall.Chmod(dir, mode), dir) // whatever the umask is
}

// ownerOf resolves the user of a request that makes files; nil leaves them to root.
func ownerOf(user *string) (*account, error) {
	if user == nil {
		return nil, nil
	}
	return lookUser(*user)
}
