package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"os"
	"path"
	"syscall"
	"time"
)

type tarOutArgs struct {
	named
	Channel uint32 `json:"channel"`
	Path    []byte `json:"path"`
	Window  int    `json:"window"`
}

// tarOut answers the request `tar_out`: the tree below a path, or a single file, goes to the node as a POSIX tar stream.
func tarOut(l *link, args *tarOutArgs) (any, error) {
	at, err := absolute(args.Path)
	if err != nil {
		return nil, err
	}
	return l.openChannel(args.Channel, "tar_out", withStreams(args.Window, false, streamOut), func(c *channel) (any, error) {
		var st syscall.Stat_t
		if err := syscall.Stat(at, &st); err != nil {
			return nil, failed(err, at)
		}
		go func() {
			p := newPacker(c.out[streamOut])
			err := p.pack(at, &st)
			c.out[streamOut].finish()
			c.finished(closedEvent{Files: &p.files, Bytes: &p.bytes}, err)
		}()
		return nil, nil
	})
}

// packer writes files into a tar stream.
type packer struct {
	buffered *bufio.Writer
	archive  *tar.Writer
	linked   map[[2]uint64]string // first names of files that have several
	piece    []byte
	files    int
	bytes    int64
}

func newPacker(out io.Writer) *packer {
	p := &packer{buffered: bufio.NewWriterSize(out, payloadLimit), linked: map[[2]uint64]string{}, piece: make([]byte, payloadLimit)}
	p.archive = tar.NewWriter(p.buffered)
	return p
}

func (p *packer) pack(at string, st *syscall.Stat_t) error {
	var err error
	if st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		err = p.tree(at, "")
	} else {
		err = p.add(at, path.Base(at), st)
	}
	if err != nil {
		return err
	}
	if err := p.archive.Close(); err != nil {
		return err
	}
	return p.buffered.Flush()
}

// tree adds what is in a directory. What vanishes meanwhile is left out.
func (p *packer) tree(dir, prefix string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, d := range entries {
		at := join(dir, d.Name())
		var st syscall.Stat_t
		err := syscall.Lstat(at, &st)
		if err == nil {
			err = p.add(at, prefix+d.Name(), &st)
		}
		if err == nil && st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			err = p.tree(at, prefix+d.Name()+"/")
		}
		if err != nil && !errors.Is(err, syscall.ENOENT) {
			return failed(err, at)
		}
	}
	return nil
}

// add writes one file. Sockets can't be packed and are left out.
func (p *packer) add(at, name string, st *syscall.Stat_t) error {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), Format: tar.FormatPAX,
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec),
	}
	var file *os.File
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case syscall.S_IFLNK:
		target, err := os.Readlink(at)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case syscall.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
		if first, ok := p.firstName(name, st); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			break
		}
		var err error
		if file, err = os.Open(at); err != nil {
			return err
		}
		defer file.Close()
	case syscall.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case syscall.S_IFCHR, syscall.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&syscall.S_IFMT == syscall.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(st.Rdev>>8&0xfff), int64(st.Rdev&0xff|st.Rdev>>12&0xfff00)
	default:
		return nil
	}
	if err := p.archive.WriteHeader(h); err != nil {
		return err
	}
	p.files++
	if file == nil {
		return nil
	}
	return p.content(file, st.Size)
}

// firstName tells the name under which a file with several names was packed before.
func (p *packer) firstName(name string, st *syscall.Stat_t) (string, bool) {
	if st.Nlink < 2 {
		return "", false
	}
	key := [2]uint64{st.Dev, st.Ino}
	first, ok := p.linked[key]
	if !ok {
		p.linked[key] = name
	}
	return first, ok
}

// content copies exactly the size that the header promised: a file that shrinks meanwhile is filled up with zeros, growth is left out.
func (p *packer) content(file *os.File, size int64) error {
	for size > 0 {
		piece := p.piece[:min(int64(len(p.piece)), size)]
		n, err := file.Read(piece)
		if errors.Is(err, io.EOF) {
			n, err = len(piece), nil
			clear(piece)
		}
		if err != nil {
			return err
		}
		if _, err := p.archive.Write(piece[:n]); err != nil {
			return err
		}
		size -= int64(n)
		p.bytes += int64(n)
	}
	return nil
}
