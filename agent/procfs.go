package main

import (
	"bytes"
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

// ticksPerSecond is the unit of times in /proc, the same on every Linux.
const ticksPerSecond = 100

// procStat is what the agent reads of /proc/PID/stat.
type procStat struct {
	comm    string
	state   string
	ppid    int
	ticks   uint64 // user and system time
	threads int
	pages   int64 // resident
}

func readStat(pid int) (s procStat, ok bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return s, false // gone
	}
	return parseStat(string(text))
}

// parseStat reads a line in which the second field, in parentheses, may hold anything, parentheses included.
func parseStat(line string) (s procStat, ok bool) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return s, false
	}
	f := strings.Fields(line[end+1:])
	if len(f) < 22 {
		return s, false
	}
	number := func(i int) int64 { n, _ := strconv.ParseInt(f[i], 10, 64); return n }
	return procStat{
		comm: line[open+1 : end], state: f[0], ppid: int(number(1)),
		ticks: uint64(number(11) + number(12)), threads: int(number(17)), pages: number(21),
	}, true
}

// allPIDs lists the processes but the agent.
func allPIDs() (pids []int) {
	dir, err := os.Open("/proc")
	if err != nil {
		logf("%v", err)
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		logf("%v", err)
	}
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid != selfPID {
			pids = append(pids, pid)
		}
	}
	sort.Ints(pids)
	return pids
}

type processesArgs struct {
	named
	After int `json:"after"`
}

type processesAnswer struct {
	Processes []processRecord `json:"processes"`
	More      bool            `json:"more"`
}

type processRecord struct {
	PID     int     `json:"pid"`
	PPID    int     `json:"ppid"`
	UID     uint32  `json:"uid"`
	Command []byte  `json:"command"`
	State   string  `json:"state"`
	CPU     float64 `json:"cpu"`
	RSS     int64   `json:"rss"`
	ID      *string `json:"id"`
}

// commandLimit is how many bytes of a command line are told.
const commandLimit = 1024

// processes answers the request of that name, in order of pid; `after` is the pid to continue behind when an answer has `more`.
func processes(_ *link, args *processesArgs) (any, error) {
	owners := running.owners()
	answer := processesAnswer{Processes: []processRecord{}}
	size := 0
	for _, pid := range allPIDs() {
		if pid <= args.After {
			continue
		}
		r, ok := readProcess(pid)
		if !ok {
			continue
		}
		if p, ok := owners[pid]; ok {
			r.ID = &p.id
		}
		size += len(mustJSON(r)) + 1
		if answer.More = size > answerBudget; answer.More {
			break
		}
		answer.Processes = append(answer.Processes, r)
	}
	return answer, nil
}

func readProcess(pid int) (r processRecord, ok bool) {
	s, ok := readStat(pid)
	if !ok {
		return r, false
	}
	dir := "/proc/" + strconv.Itoa(pid)
	var st syscall.Stat_t
	if syscall.Stat(dir, &st) != nil {
		return r, false
	}
	command, err := os.ReadFile(dir + "/cmdline")
	command = bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte{' '})
	if err != nil || len(command) == 0 { // a zombie has none
		command = []byte(s.comm)
	}
	return processRecord{
		PID: pid, PPID: s.ppid, UID: st.Uid, Command: command[:min(len(command), commandLimit)], State: s.state,
		CPU: float64(s.ticks) / ticksPerSecond, RSS: s.pages * int64(os.Getpagesize()),
	}, true
}

type diskUsage struct {
	Total     uint64 `json:"total"`
	Used      uint64 `json:"used"`
	Files     uint64 `json:"files"`
	FilesUsed uint64 `json:"files_used"`
}

type usageAnswer struct {
	Processes int       `json:"processes"`
	Threads   int       `json:"threads"`
	Memory    int64     `json:"memory"`
	Disk      diskUsage `json:"disk"`
}

// usage answers the request of that name. Memory is what the kernel of the guest counts as used, its caches included.
func usage(*link, *nothing) (any, error) {
	pids := allPIDs()
	answer := usageAnswer{Processes: len(pids), Memory: usedMemory()}
	if box >= 0 {
		n, err := taskCount()
		if err != nil {
			return nil, err
		}
		answer.Threads = n
	} else {
		for _, pid := range pids {
			if s, ok := readStat(pid); ok {
				answer.Threads += s.threads
			}
		}
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs("/", &fs); err != nil {
		return nil, failed(err, "/")
	}
	block := uint64(fs.Bsize)
	answer.Disk = diskUsage{Total: fs.Blocks * block, Used: (fs.Blocks - fs.Bfree) * block, Files: fs.Files, FilesUsed: fs.Files - fs.Ffree}
	return answer, nil
}
