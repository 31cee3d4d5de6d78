package main

import (
	"errors"
	"io"
	"os"
	"syscall"
)

type writeArgs struct {
	named
	Channel   uint32  `json:"channel"`
	Path      []byte  `json:"path"`
	Mode      *uint32 `json:"mode"`
	User      *string `json:"user"`
	Parents   bool    `json:"parents"`
	Append    bool    `json:"append"`
	Exclusive bool    `json:"exclusive"`
	InPlace   bool    `json:"in_place"`
	Window    int     `json:"window"`
}

// write answers the request of that name: stream 0 becomes a file.
func write(l *link, args *writeArgs) (any, error) {
	at, err := absolute(args.Path)
	if err != nil {
		return nil, err
	}
	return l.openChannel(args.Channel, "write", withStreams(args.Window, true), func(c *channel) (any, error) {
		w, err := newWriting(at, args)
		if err != nil {
			return nil, err
		}
		c.writing = w
		go func() {
			err := w.receive(c.in)
			var e *entry
			if err == nil {
				e, err = describeFile(w.at, true)
			}
			if err != nil {
				c.in.breakOff()
			}
			c.finished(closedEvent{Entry: e}, err)
		}()
		return nil, nil
	})
}

// writing is a file on its way into the sandbox.
type writing struct {
	at        string // the final place, behind links
	staged    string // where it is until it is complete; empty when it is written in place
	file      *os.File
	mode      *uint32
	exclusive bool
}

// newWriting opens what the bytes go to: a temporary file beside the target, or the target itself for `append`, `in_place`, devices, and where there can't be
// another file, as in /proc.
func newWriting(at string, args *writeArgs) (*writing, error) {
	owner, err := ownerOf(args.User)
	if err != nil {
		return nil, err
	}
	if args.Mode != nil && *args.Mode > 0o7777 {
		return nil, protocol("mode %#o is more than 07777", *args.Mode)
	}
	if at, err = finalTarget(at); err != nil {
		return nil, err
	}
	if args.Parents {
		if err := parents(at, owner); err != nil {
			return nil, err
		}
	}
	var st syscall.Stat_t
	missing := syscall.Stat(at, &st)
	switch kind := st.Mode & syscall.S_IFMT; {
	case missing != nil && missing != syscall.ENOENT:
		return nil, failed(missing, at)
	case missing == nil && args.Exclusive:
		return nil, failed(syscall.EEXIST, at)
	case missing == nil && kind == syscall.S_IFDIR:
		return nil, failed(syscall.EISDIR, at)
	case missing == nil && (kind == syscall.S_IFSOCK || kind == syscall.S_IFIFO):
		return nil, failed(syscall.EINVAL, at)
	}
	w := &writing{at: at, mode: args.Mode, exclusive: args.Exclusive}
	if args.Append || args.InPlace || missing == nil && st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return w, w.openInPlace(owner, args.Append)
	}
	staged := temporary(at)
	w.file, err = os.OpenFile(staged, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil && missing == nil {
		return w, w.openInPlace(owner, false)
	}
	if err != nil {
		return nil, failed(asErrno(err), at)
	}
	w.staged = staged
	uid, gid, mode := 0, 0, uint32(0o644)
	if missing == nil {
		uid, gid, mode = int(st.Uid), int(st.Gid), st.Mode&0o7777
	}
	if owner != nil {
		uid, gid = int(owner.uid), int(owner.gid)
	}
	if args.Mode != nil {
		mode = *args.Mode
	}
	if uid != 0 || gid != 0 {
		err = w.file.Chown(uid, gid)
	}
	if err == nil {
		err = syscall.Fchmod(int(w.file.Fd()), mode)
	}
	if err != nil {
		w.abandon()
		return nil, failed(asErrno(err), at)
	}
	return w, nil
}

func (w *writing) openInPlace(owner *account, appending bool) error {
	flags := syscall.O_WRONLY | syscall.O_CREAT | syscall.O_NOCTTY | syscall.O_CLOEXEC
	if appending {
		flags |= syscall.O_APPEND
	} else {
		flags |= syscall.O_TRUNC
	}
	if w.exclusive {
		flags |= syscall.O_EXCL
	}
	_, missing := os.Lstat(w.at)
	fd, err := syscall.Open(w.at, flags, 0o644)
	if err != nil {
		return failed(err, w.at)
	}
	if missing != nil && owner != nil {
		err = syscall.Fchown(fd, int(owner.uid), int(owner.gid))
	}
	if err == nil && w.mode != nil {
		err = syscall.Fchmod(fd, *w.mode)
	}
	w.file = os.NewFile(uintptr(fd), w.at)
	if err != nil {
		w.file.Close()
	}
	return failed(err, w.at)
}

// writePiece is how much is written between acknowledgements: a quarter of the usual window, so that the sender never waits for a whole one.
const writePiece = 256 << 10

// receive writes the stream to the file and puts that in its place.
func (w *writing) receive(in *inlet) error {
	for {
		piece, end, ok := in.next()
		if !ok {
			w.abandon()
			return errChannelClosed
		}
		if end {
			break
		}
		n, err := w.file.Write(piece[:min(len(piece), writePiece)])
		in.use(n)
		if err != nil {
			w.abandon()
			return failed(asErrno(err), w.at)
		}
	}
	err := w.finish()
	in.end()
	return err
}

func (w *writing) finish() error {
	if err := w.file.Close(); err != nil {
		w.removeStaged()
		return failed(asErrno(err), w.at)
	}
	if w.staged == "" {
		return nil
	}
	var err error
	if w.exclusive { // a link never replaces anything
		err = syscall.Link(w.staged, w.at)
		w.removeStaged()
		return failed(err, w.at)
	}
	err = syscall.Rename(w.staged, w.at)
	if err == syscall.EBUSY { // something is mounted there: a file of the node's, or a volume
		err = w.copyOver()
	}
	if err != nil {
		w.removeStaged()
	}
	return failed(err, w.at)
}

// copyOver replaces the content of a file that can't be replaced itself.
func (w *writing) copyOver() error {
	in, err := os.Open(w.staged)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(w.at, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	err = errors.Join(err, out.Close())
	w.removeStaged()
	return err
}

func (w *writing) abandon() {
	w.file.Close()
	w.removeStaged()
}

func (w *writing) removeStaged() {
	if w.staged == "" {
		return
	}
	if err := syscall.Unlink(w.staged); err != nil && err != syscall.ENOENT {
		logf("%s: %v", w.staged, err)
	}
}
