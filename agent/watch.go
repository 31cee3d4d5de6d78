package main

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

type watchArgs struct {
	named
	Channel   uint32 `json:"channel"`
	Path      []byte `json:"path"`
	Recursive bool   `json:"recursive"`
	Window    int    `json:"window"`
}

// change is one record of a watch.
type change struct {
	Type string `json:"type"`
	Path []byte `json:"path"`
	To   []byte `json:"to,omitempty"`
	Dir  bool   `json:"dir"`
}

// watch answers the request of that name.
func watch(l *link, args *watchArgs) (any, error) {
	at, err := absolute(args.Path)
	if err != nil {
		return nil, err
	}
	return l.openChannel(args.Channel, "watch", withStreams(args.Window, false, streamOut), func(c *channel) (any, error) {
		w, err := newWatcher(at, args.Recursive, c.out[streamOut])
		if err != nil {
			return nil, err
		}
		c.onClose(func() { w.events.Close() })
		go w.run()
		return nil, nil
	})
}

// watcher turns inotify events into records. When the node doesn't take them it goes on reading, since gVisor's queue of events has no limit, and
// tells `overflow` in place of what is lost.
type watcher struct {
	events    *os.File
	fd        int
	recursive bool
	out       *outlet
	top       int32            // the watch of the path itself
	topDir    bool             // it is a directory
	dirs      map[int32]string // watch descriptor → path
	moved     *moving
	last      change      // told last
	fresh     bool        // in this batch of events
	lossy     atomic.Bool // records are dropped until the one of the overflow has been written
}

// moving is the first half of a rename.
type moving struct {
	cookie uint32
	path   string
	dir    bool
}

const watchMask = syscall.IN_CREATE | syscall.IN_CLOSE_WRITE | syscall.IN_MODIFY | syscall.IN_DELETE | syscall.IN_MOVED_FROM | syscall.IN_MOVED_TO |
	syscall.IN_ATTRIB | syscall.IN_DELETE_SELF | syscall.IN_MOVE_SELF | syscall.IN_DONT_FOLLOW

func newWatcher(at string, recursive bool, out *outlet) (*watcher, error) {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return nil, failed(err, at)
	}
	w := &watcher{fd: fd, events: os.NewFile(uintptr(fd), "inotify"), recursive: recursive, out: out, dirs: map[int32]string{}}
	number, err := syscall.InotifyAddWatch(fd, at, watchMask&^syscall.IN_DONT_FOLLOW)
	if err != nil {
		w.events.Close()
		return nil, failed(err, at)
	}
	w.top = int32(number)
	w.topDir = checkDir(at) == nil
	w.dirs[w.top] = at
	if recursive && w.topDir {
		w.addBelow(at, false)
	}
	return w, nil
}

// addBelow watches the directories below one. With `report` everything there is told as created: it may have come before its directory was watched.
func (w *watcher) addBelow(dir string, report bool) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // gone again
	}
	for _, d := range entries {
		at := join(dir, d.Name())
		switch {
		case d.IsDir():
			w.add(at, report)
		case report:
			w.tell(change{Type: "create", Path: []byte(at)})
			w.tell(change{Type: "write", Path: []byte(at)})
		}
	}
}

// add watches a directory and what is below it. It is told only when it is watched already, so that whoever hears of it misses nothing.
func (w *watcher) add(dir string, report bool) {
	number, err := syscall.InotifyAddWatch(w.fd, dir, watchMask|syscall.IN_ONLYDIR)
	if err == nil {
		w.dirs[int32(number)] = dir
	}
	if report {
		w.tell(change{Type: "create", Path: []byte(dir), Dir: true})
	}
	switch err {
	case nil:
		w.addBelow(dir, report)
	case syscall.ENOSPC, syscall.ENOMEM: // the limit of watches: part of the tree is not seen
		w.overflow()
	default: // gone again
	}
}

// secondHalf is how long the second half of a rename may come after the first: the kernel queues them one by one.
const secondHalf = 10 * time.Millisecond

func (w *watcher) run() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := w.events.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.settle() // without one the name has left what is watched
		} else if err != nil {
			return // closed
		}
		w.fresh = false
		w.take(buffer[:max(n, 0)])
		var deadline time.Time // none
		if w.moved != nil {
			deadline = time.Now().Add(secondHalf)
		}
		if w.events.SetReadDeadline(deadline) != nil {
			return // closed
		}
	}
}

// take handles a batch of inotify events.
func (w *watcher) take(batch []byte) {
	for len(batch) >= syscall.SizeofInotifyEvent {
		number := int32(binary.NativeEndian.Uint32(batch))
		mask := binary.NativeEndian.Uint32(batch[4:])
		cookie := binary.NativeEndian.Uint32(batch[8:])
		size := int(binary.NativeEndian.Uint32(batch[12:]))
		batch = batch[syscall.SizeofInotifyEvent:]
		if size > len(batch) {
			return
		}
		name := strings.TrimRight(string(batch[:size]), "\x00")
		batch = batch[size:]
		w.event(number, mask, cookie, name)
	}
}

func (w *watcher) event(number int32, mask, cookie uint32, name string) {
	if mask&syscall.IN_Q_OVERFLOW != 0 {
		w.overflow()
		return
	}
	dir, ok := w.dirs[number]
	if !ok {
		return
	}
	if mask&syscall.IN_IGNORED != 0 {
		delete(w.dirs, number)
		return
	}
	at, isDir := dir, mask&syscall.IN_ISDIR != 0
	if name != "" {
		at = join(dir, name)
	}
	if mask&syscall.IN_MOVED_TO == 0 || w.moved == nil || w.moved.cookie != cookie {
		w.settle()
	}
	switch {
	case mask&syscall.IN_CREATE != 0, mask&syscall.IN_MOVED_TO != 0 && w.moved == nil: // or it came from outside
		if isDir && w.recursive {
			w.add(at, true)
		} else {
			w.tell(change{Type: "create", Path: []byte(at), Dir: isDir})
		}
	case mask&syscall.IN_MOVED_FROM != 0:
		w.moved = &moving{cookie, at, isDir}
	case mask&syscall.IN_MOVED_TO != 0:
		w.tell(change{Type: "rename", Path: []byte(w.moved.path), To: []byte(at), Dir: isDir})
		w.renamed(w.moved.path, at)
		w.moved = nil
	case mask&syscall.IN_DELETE != 0:
		w.tell(change{Type: "remove", Path: []byte(at), Dir: isDir})
	case mask&(syscall.IN_DELETE_SELF|syscall.IN_MOVE_SELF) != 0:
		if number == w.top { // the others are told by their parents
			w.tell(change{Type: "remove", Path: []byte(at), Dir: w.topDir})
		}
	case mask&syscall.IN_ATTRIB != 0:
		if name != "" || number == w.top {
			w.tell(change{Type: "chmod", Path: []byte(at), Dir: isDir})
		}
	case mask&syscall.IN_MODIFY != 0:
		if !w.fresh || !w.toldWrite(at) {
			w.tell(change{Type: "write", Path: []byte(at)})
		}
	case mask&syscall.IN_CLOSE_WRITE != 0:
		if !w.toldWrite(at) { // else nothing was written since
			w.tell(change{Type: "write", Path: []byte(at)})
		}
	}
}

// settle tells of a name that was moved out of what is watched.
func (w *watcher) settle() {
	if m := w.moved; m != nil {
		w.moved = nil
		w.tell(change{Type: "remove", Path: []byte(m.path), Dir: m.dir})
		for number, dir := range w.dirs {
			if dir == m.path || strings.HasPrefix(dir, m.path+"/") {
				_, _ = syscall.InotifyRmWatch(w.fd, uint32(number)) // gone already is as good
				delete(w.dirs, number)
			}
		}
	}
}

// renamed keeps the paths of watched directories right.
func (w *watcher) renamed(from, to string) {
	for number, dir := range w.dirs {
		if dir == from || strings.HasPrefix(dir, from+"/") {
			w.dirs[number] = to + dir[len(from):]
		}
	}
}

func (w *watcher) overflow() { w.tell(change{Type: "overflow"}) }

// toldWrite tells whether the last record says that this file was written.
func (w *watcher) toldWrite(at string) bool {
	return w.last.Type == "write" && string(w.last.Path) == at
}

// tell writes a record.
func (w *watcher) tell(c change) {
	if c.Path == nil {
		c.Path = []byte{}
	}
	w.last, w.fresh = c, true
	if w.lossy.Load() || w.out.tryWrite(record(c)) {
		return
	}
	w.lossy.Store(true)
	go func() {
		if _, err := w.out.Write(record(change{Type: "overflow", Path: []byte{}})); err == nil { // waits for room
			w.lossy.Store(false)
		}
	}()
}

func record(c change) []byte { return append(mustJSON(c), '\n') }
