package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"os"
	"syscall"
	"unsafe"
)

type tarInArgs struct {
	named
	Channel uint32  `json:"channel"`
	Path    []byte  `json:"path"`
	User    *string `json:"user"`
	Parents bool    `json:"parents"`
	Window  int     `json:"window"`
}

// tarIn answers the request `tar_in`: stream 0 is unpacked below a directory. Files belong to the user if one is given, else to whom the archive says.
func tarIn(l *link, args *tarInArgs) (any, error) {
	at, err := absolute(args.Path)
	if err != nil {
		return nil, err
	}
	return l.openChannel(args.Channel, "tar_in", withStreams(args.Window, true), func(c *channel) (any, error) {
		owner, err := ownerOf(args.User)
		if err != nil {
			return nil, err
		}
		if args.Parents {
			if err := makeDirs(at, 0o755, owner); err != nil {
				return nil, err
			}
		}
		where, err := openBeneath(at, owner)
		if err != nil {
			return nil, err
		}
		go func() {
			u := &unpacker{where: where, owner: owner, piece: make([]byte, payloadLimit)}
			err := u.unpack(inletReader{c.in})
			where.close()
			if err != nil {
				c.in.breakOff()
			} else {
				c.in.end()
			}
			c.finished(closedEvent{Files: &u.files, Bytes: &u.bytes}, err)
		}()
		return nil, nil
	})
}

// unpacker writes a tar stream below a directory.
type unpacker struct {
	where *beneath
	owner *account
	piece []byte
	dirs  []dirTimes
	files int
	bytes int64
}

// dirTimes are set at the end, since unpacking into a directory changes them.
type dirTimes struct {
	name  string
	mtime syscall.Timespec
}

// dirTimesLimit bounds the memory an archive of directories can take; those beyond it keep the time of the unpacking.
const dirTimesLimit = 100000

func (u *unpacker) unpack(from io.Reader) error {
	archive := tar.NewReader(bufio.NewReaderSize(from, 64<<10))
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return notTar(err)
		}
		if err := u.add(h, archive); err != nil {
			return notTar(err)
		}
	}
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		dir, last, err := u.where.parent(d.name, false)
		if err != nil {
			return err
		}
		if err := setTimes(dir, last, d.mtime, d.mtime); err != nil {
			return err
		}
	}
	_, err := io.Copy(io.Discard, from) // padding behind the archive
	return err
}

// notTar turns errors of the archive's format into one of the wire's.
func notTar(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) {
		return protocol("not a tar archive, or one cut off: %v", err)
	}
	return err
}

func (u *unpacker) add(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "" { // the tree's own directory stays as it is
		return nil
	}
	dir, last, err := u.where.parent(name, true)
	if err != nil {
		return err
	}
	if err := u.make(dir, last, name, h, content); err != nil {
		return failed(notTar(err), join(u.where.root, name))
	}
	u.files++
	return nil
}

// make creates one file in an open directory.
func (u *unpacker) make(dir int, last, name string, h *tar.Header, content io.Reader) error {
	mode := uint32(h.Mode & 0o7777)
	if h.Typeflag == tar.TypeDir {
		return u.directory(dir, last, name, mode, h)
	}
	if err := unlinkat(dir, last); err != nil && err != syscall.ENOENT {
		return err // a directory is not replaced by something else
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.regular(dir, last, mode, h, content)
	case tar.TypeLink:
		return u.hardLink(dir, last, h.Linkname)
	case tar.TypeSymlink:
		if err := symlinkat(h.Linkname, dir, last); err != nil {
			return err
		}
	case tar.TypeFifo:
		if err := syscall.Mknodat(dir, last, syscall.S_IFIFO|mode, 0); err != nil {
			return err
		}
	case tar.TypeChar, tar.TypeBlock:
		kind := uint32(syscall.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			kind = syscall.S_IFBLK
		}
		device := h.Devminor&0xff | h.Devmajor&0xfff<<8 | h.Devminor&^0xff<<12
		if err := syscall.Mknodat(dir, last, kind|mode, int(device)); err != nil {
			return err
		}
	default:
		return protocol("archive entry of type %q", h.Typeflag)
	}
	if err := u.own(dir, last, h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := syscall.Fchmodat(dir, last, mode, 0); err != nil { // fresh, and no link
			return err
		}
	}
	return setTimes(dir, last, timeOf(h), timeOf(h))
}

func (u *unpacker) directory(dir int, last, name string, mode uint32, h *tar.Header) error {
	err := syscall.Mkdirat(dir, last, 0o700)
	existing := err == syscall.EEXIST
	if err != nil && !existing {
		return err
	}
	fd, err := openDir(dir, last)
	if existing && (err == syscall.ELOOP || err == syscall.ENOTDIR) {
		fd, err = u.where.open(name, false) // a link to a directory inside is as good: /lib is one in most images
		if err == nil {
			syscall.Close(fd)
		}
		return err
	}
	if err != nil {
		return err
	}
	syscall.Close(fd)
	if err := u.own(dir, last, h); err != nil {
		return err
	}
	if err := syscall.Fchmodat(dir, last, mode, 0); err != nil { // it is no link, as openDir has seen
		return err
	}
	if len(u.dirs) < dirTimesLimit {
		u.dirs = append(u.dirs, dirTimes{name, timeOf(h)})
	}
	return nil
}

func (u *unpacker) regular(dir int, last string, mode uint32, h *tar.Header, content io.Reader) error {
	fd, err := syscall.Openat(dir, last, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), last)
	defer file.Close()
	for {
		n, err := content.Read(u.piece)
		if _, err := file.Write(u.piece[:n]); err != nil {
			return asErrno(err)
		}
		u.bytes += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	uid, gid := u.ids(h)
	if uid != 0 || gid != 0 {
		if err := syscall.Fchown(fd, uid, gid); err != nil {
			return err
		}
	}
	if err := syscall.Fchmod(fd, mode); err != nil {
		return err
	}
	return setTimes(dir, last, timeOf(h), timeOf(h))
}

// hardLink makes a link to a file unpacked before, or there before; the target is named from the tree's root.
func (u *unpacker) hardLink(dir int, last, target string) error {
	target, err := cleanName(target)
	if err != nil {
		return err
	}
	held, err := duplicate(dir) // looking the target up may close what parent returned
	if err != nil {
		return err
	}
	defer syscall.Close(held)
	from, name, err := u.where.parent(target, false)
	if err != nil {
		return err
	}
	return linkat(from, name, held, last)
}

func (u *unpacker) ids(h *tar.Header) (uid, gid int) {
	if u.owner != nil {
		return int(u.owner.uid), int(u.owner.gid)
	}
	return h.Uid, h.Gid
}

func (u *unpacker) own(dir int, last string, h *tar.Header) error {
	uid, gid := u.ids(h)
	return syscall.Fchownat(dir, last, uid, gid, atSymlinkNoFollow)
}

func timeOf(h *tar.Header) syscall.Timespec { return syscall.NsecToTimespec(h.ModTime.UnixNano()) }

func unlinkat(dir int, name string) error { return nameCall(syscall.SYS_UNLINKAT, dir, name, 0) }

func nameCall(call uintptr, dir int, name string, flags uintptr) error {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if _, _, errno := syscall.Syscall(call, uintptr(dir), uintptr(unsafe.Pointer(p)), flags); errno != 0 {
		return errno
	}
	return nil
}

func symlinkat(target string, dir int, name string) error {
	t, err := syscall.BytePtrFromString(target)
	if err != nil {
		return err
	}
	n, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_SYMLINKAT, uintptr(unsafe.Pointer(t)), uintptr(dir), uintptr(unsafe.Pointer(n))); errno != 0 {
		return errno
	}
	return nil
}

// linkat links a name itself, not what a link there points to.
func linkat(fromDir int, from string, toDir int, to string) error {
	a, err := syscall.BytePtrFromString(from)
	if err != nil {
		return err
	}
	b, err := syscall.BytePtrFromString(to)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall6(syscall.SYS_LINKAT, uintptr(fromDir), uintptr(unsafe.Pointer(a)), uintptr(toDir), uintptr(unsafe.Pointer(b)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
