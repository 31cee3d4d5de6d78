package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The guest's kernel tells the memory and the CPUs of the host. These files lie over its own and tell the sandbox's.
type shownFile struct {
	path     string
	original string   // what the kernel says, read before it was covered
	file     *os.File // the cover
}

var (
	shownMeminfo = shownFile{path: "/proc/meminfo"}
	shownCPUInfo = shownFile{path: "/proc/cpuinfo"}
	shownStat    = shownFile{path: "/proc/stat"}
	shownOnline  = shownFile{path: "/sys/devices/system/cpu/online"}

	kernelMeminfo *os.File // the /proc/meminfo below the cover
)

// prepareLimits covers the files. What they tell is written at the claim.
func prepareLimits() (err error) {
	for _, s := range []*shownFile{&shownMeminfo, &shownCPUInfo, &shownStat, &shownOnline} {
		text, err := os.ReadFile(s.path)
		if err != nil {
			if os.IsNotExist(err) {
				continue // not every kernel has /sys/devices/system/cpu
			}
			return err
		}
		s.original = string(text)
		cover := corralDir + "/" + s.path[strings.LastIndexByte(s.path, '/')+1:]
		if s.file, err = os.OpenFile(cover, os.O_CREATE|os.O_RDWR, 0o444); err != nil {
			return err
		}
		if err := s.show(s.original); err != nil {
			return err
		}
		if err := syscall.Mount(cover, s.path, "", syscall.MS_BIND, ""); err != nil {
			return failed(err, s.path)
		}
	}
	return nil
}

// show replaces what the file says. A reader at the same time sees the old or the new text as long as their lengths agree.
func (s *shownFile) show(text string) error {
	if s.file == nil {
		return nil
	}
	if _, err := s.file.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	return s.file.Truncate(int64(len(text)))
}

// showCPUs makes the files tell n CPUs.
func showCPUs(n int) error {
	if err := shownCPUInfo.show(firstCPUs(shownCPUInfo.original, n)); err != nil {
		return err
	}
	if err := shownStat.show(statOfCPUs(shownStat.original, n)); err != nil {
		return err
	}
	online := "0\n"
	if n > 1 {
		online = fmt.Sprintf("0-%d\n", n-1)
	}
	return shownOnline.show(online)
}

// firstCPUs cuts /proc/cpuinfo, a paragraph for each CPU, after the n-th.
func firstCPUs(text string, n int) string {
	paragraphs := strings.SplitAfter(text, "\n\n")
	return strings.Join(paragraphs[:min(n, len(paragraphs))], "")
}

// statOfCPUs drops the cpuN lines of /proc/stat from the n-th on.
func statOfCPUs(text string, n int) string {
	var kept strings.Builder
	for _, line := range strings.SplitAfter(text, "\n") {
		name, _, _ := strings.Cut(line, " ")
		if number, err := strconv.Atoi(strings.TrimPrefix(name, "cpu")); err == nil && strings.HasPrefix(name, "cpu") && number >= n {
			continue
		}
		kept.WriteString(line)
	}
	return kept.String()
}

// memory is what /proc/meminfo needs to know.
var memory struct {
	sync.Mutex
	limit     int64 // KiB; 0 before the claim
	refreshed time.Time
}

// showMemory makes /proc/meminfo tell a limit of so many MiB. What is used is as it was at birth: asking again takes the kernel longer than all the rest.
func showMemory(mib int) error {
	memory.Lock()
	defer memory.Unlock()
	memory.limit = int64(mib) << 10
	memory.refreshed = time.Now()
	return shownMeminfo.show(limitedMeminfo(shownMeminfo.original, memory.limit))
}

// refreshMemory writes the current use, unless that was done less than `age` ago.
func refreshMemory(age time.Duration) error {
	memory.Lock()
	defer memory.Unlock()
	if now := time.Now(); memory.limit == 0 || now.Sub(memory.refreshed) < age {
		return nil
	} else {
		memory.refreshed = now
	}
	text, err := readMeminfo()
	if err != nil {
		return err
	}
	return shownMeminfo.show(limitedMeminfo(text, memory.limit))
}

// readMeminfo returns what the kernel says.
func readMeminfo() (string, error) {
	var text [4096]byte
	n, err := kernelMeminfo.ReadAt(text[:], 0)
	if n == 0 {
		return "", err
	}
	return string(text[:n]), nil
}

// usedMemory is in bytes.
func usedMemory() int64 {
	text, err := readMeminfo()
	if err != nil {
		logf("meminfo: %v", err)
		return 0
	}
	fields := meminfoFields(text)
	return (fields["MemTotal"] - fields["MemFree"]) << 10
}

// meminfoFields reads the numbers of /proc/meminfo, in KiB.
func meminfoFields(text string) map[string]int64 {
	fields := map[string]int64{}
	for _, line := range strings.Split(text, "\n") {
		name, rest, _ := strings.Cut(line, ":")
		value, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			fields[name] = n
		}
	}
	return fields
}

// limitedMeminfo rewrites the kernel's /proc/meminfo for a limit in KiB: what is used stays, what is free shrinks.
func limitedMeminfo(text string, limit int64) string {
	fields := meminfoFields(text)
	used := fields["MemTotal"] - fields["MemFree"]
	free := max(limit-used, 0)
	available := min(max(limit-(fields["MemTotal"]-fields["MemAvailable"]), free), limit)
	var out strings.Builder
	for i, line := range strings.Split(text, "\n") {
		name, _, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		value := fields[name]
		switch name {
		case "MemTotal":
			value = limit
		case "MemFree":
			value = free
		case "MemAvailable":
			value = available
		}
		if i > 0 {
			out.WriteByte('\n')
		}
		fmt.Fprintf(&out, "%-14s%10d kB", name+":", value)
	}
	out.WriteByte('\n')
	return out.String()
}
