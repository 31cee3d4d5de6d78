package main

import (
	"errors"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// rootfs is where the host mounts the sandbox's root just before the claim.
const rootfs = "/rootfs"

// claimed is set once the agent lives in the sandbox's own root.
var claimed atomic.Bool

var claimOnce sync.Mutex

// claimedEnv is the environment every process starts with.
var claimedEnv atomic.Pointer[[][]byte]

func defaultEnv() [][]byte {
	if env := claimedEnv.Load(); env != nil {
		return *env
	}
	return nil
}

type claimArgs struct {
	named
	Hostname string       `json:"hostname"`
	Memory   int          `json:"memory"` // MiB
	CPUs     int          `json:"cpus"`
	Pids     int          `json:"pids"`
	Tmp      int          `json:"tmp"` // MiB
	Files    []claimFile  `json:"files"`
	Volumes  []volumeName `json:"volumes"`
	Sudo     bool         `json:"sudo"`
	Env      [][]byte     `json:"env"`
	Clock    *float64     `json:"clock"`
}

type claimFile struct {
	Path    []byte  `json:"path"`
	Content []byte  `json:"content"`
	Mode    *uint32 `json:"mode"`
}

type volumeName struct {
	Name   string `json:"name"`
	Target []byte `json:"target"`
}

// claim turns the pool member into the sandbox. It can't be repeated, not even after a failure.
func claim(_ *link, args *claimArgs) (any, error) {
	if args.Hostname == "" || args.Memory <= 0 || args.CPUs <= 0 || args.Pids < 0 || args.Tmp < 0 {
		return nil, protocol("hostname, memory and cpus are needed, pids and tmp may not be negative")
	}
	if selfPID != 1 {
		return nil, failed(syscall.EPERM, "claim") // it would mount over the root of somebody else
	}
	if args.Clock != nil {
		return nil, failed(syscall.EPERM, "clock") // gVisor's guests share the host's clock
	}
	if !claimOnce.TryLock() {
		return nil, failed(syscall.EALREADY, "")
	}
	if err := enterRoot(args.Tmp); err != nil {
		return nil, err
	}
	if err := syscall.Sethostname([]byte(args.Hostname)); err != nil {
		return nil, failed(err, args.Hostname)
	}
	if err := limitCPUs(args.CPUs); err != nil {
		return nil, err
	}
	if err := governor.limitTasks(args.Pids); err != nil {
		return nil, err
	}
	if err := showCPUs(args.CPUs); err != nil {
		return nil, err
	}
	if err := showMemory(args.Memory); err != nil {
		return nil, err
	}
	for _, v := range args.Volumes {
		if err := attachVolume(v.Name, string(v.Target)); err != nil {
			return nil, err
		}
	}
	for _, f := range args.Files {
		if err := f.write(); err != nil {
			return nil, err
		}
	}
	if err := allowSudo(args.Sudo); err != nil {
		return nil, err
	}
	claimedEnv.Store(&args.Env)
	claimed.Store(true)
	return nil, nil
}

// enterRoot makes /rootfs the root of the whole agent. Its threads share one root and working directory, and pivot_root moves all of them;
// no mount namespace of its own is needed, since the agent is the only inhabitant of the member's.
func enterRoot(tmp int) error {
	for _, dir := range []string{"proc", "sys", "dev", "tmp"} {
		if err := mountPoint(rootfs + "/" + dir); err != nil {
			return err
		}
	}
	// The image may have anything at these places; what the agent mounts there is made ready in the member's own root, with all that covers it.
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := mount(dir, rootfs+dir, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
			return err
		}
	}
	if tmp > 0 {
		size := "mode=1777,size=" + strconv.Itoa(tmp) + "m"
		for _, dir := range []string{"/tmp", "/dev/shm"} {
			if err := mount("tmpfs", rootfs+dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, size); err != nil {
				return err
			}
		}
	}
	// Only a mount can become the root: /rootfs is part of the member's root, since the host mounted it there.
	if err := mount(rootfs, rootfs, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return err
	}
	if err := os.Chdir(rootfs); err != nil {
		return err
	}
	// The old root lands on top of the new one and is taken off.
	if err := syscall.PivotRoot(".", "."); err != nil {
		return failed(err, "pivot_root")
	}
	if err := syscall.Unmount(".", syscall.MNT_DETACH); err != nil {
		return failed(err, "old root")
	}
	return os.Chdir("/")
}

// mountPoint makes sure of a directory. An image from scratch may have none; one whose /dev is a symbolic link would lead the mount elsewhere.
func mountPoint(dir string) error {
	var st syscall.Stat_t
	err := syscall.Lstat(dir, &st)
	if err == syscall.ENOENT {
		return failed(syscall.Mkdir(dir, 0o755), dir)
	}
	if err == nil && st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		err = syscall.ENOTDIR
	}
	return failed(err, strings.TrimPrefix(dir, rootfs))
}

// mount is mount(2), without telling the runtime: the thread stays on its way instead of being replaced while the call takes its time.
func mount(source, target, kind string, flags uintptr, options string) error {
	var p [4]*byte
	for i, s := range []string{source, target, kind, options} {
		var err error
		if p[i], err = syscall.BytePtrFromString(s); err != nil {
			return failed(err, s)
		}
	}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_MOUNT, uintptr(unsafe.Pointer(p[0])), uintptr(unsafe.Pointer(p[1])),
		uintptr(unsafe.Pointer(p[2])), flags, uintptr(unsafe.Pointer(p[3])), 0)
	if errno != 0 {
		return failed(errno, strings.TrimPrefix(target, rootfs))
	}
	return nil
}

// write puts a file of the node's into the sandbox: /etc/hosts and the like.
func (f *claimFile) write() error {
	at := string(f.Path)
	if !path.IsAbs(at) {
		return protocol("path %q is not absolute", at)
	}
	mode := uint32(0o644)
	if f.Mode != nil {
		mode = *f.Mode & 0o7777
	}
	file, err := f.open(at)
	if err == syscall.ENOENT {
		if err := parents(at, nil); err != nil {
			return err
		}
		file, err = f.open(at)
	}
	if err == syscall.ELOOP { // /etc/resolv.conf is often a link to what a service would write
		if err := syscall.Unlink(at); err != nil {
			return failed(err, at)
		}
		file, err = f.open(at)
	}
	if err != nil {
		return failed(err, at)
	}
	out := os.NewFile(uintptr(file), at)
	_, err = out.Write(f.Content)
	if err == nil {
		err = syscall.Fchmod(file, mode)
	}
	return failed(errors.Join(err, out.Close()), at)
}

func (f *claimFile) open(at string) (int, error) {
	return syscall.Open(at, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_TRUNC|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o644)
}

// attachVolume makes a volume that the host has mounted appear at target.
func attachVolume(name, target string) error {
	if name == "" || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
		return protocol("volume name %q", name)
	}
	if !path.IsAbs(target) || path.Clean(target) == "/" {
		return protocol("volume target %q is not an absolute path below /", target)
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return failed(syscall.Mount(volumeDir+"/"+name, target, "", syscall.MS_BIND|syscall.MS_REC, ""), target)
}

type volumeArgs struct {
	named
	volumeName
	Attach bool `json:"attach"`
}

// volume answers the request of that name.
func volume(_ *link, args *volumeArgs) (any, error) {
	if args.Attach {
		return nil, attachVolume(args.Name, string(args.Target))
	}
	return nil, failed(syscall.Unmount(path.Clean(string(args.Target)), syscall.MNT_DETACH), string(args.Target))
}
