package main

import (
	"os"
	"strings"
	"syscall"
)

// listLimit is the most entries one answer holds; an answer also ends where the frame is full.
const listLimit = 10000

type listArgs struct {
	named
	Path  []byte `json:"path"`
	Depth int    `json:"depth"`
	Limit int    `json:"limit"`
	After []byte `json:"after"`
}

type listAnswer struct {
	Entries []*entry `json:"entries"`
	More    bool     `json:"more"`
}

// list answers the request of that name. Directories come before what is in them, siblings in order of their names; `after` is the path of the
// last entry of the page before.
func list(_ *link, args *listArgs) (any, error) {
	at, err := absolute(args.Path)
	if err != nil {
		return nil, err
	}
	if args.Depth < 1 {
		return nil, protocol("depth %d is less than 1", args.Depth)
	}
	if err := checkDir(at); err != nil {
		return nil, failed(err, at)
	}
	answer := listAnswer{Entries: []*entry{}}
	known := newNames()
	limit, size := args.Limit, 0
	if limit <= 0 || limit > listLimit {
		limit = listLimit
	}
	err = walk(at, args.Depth, string(args.After), func(file string, st *syscall.Stat_t) bool {
		e := known.entry(file, st)
		size += len(mustJSON(e)) + 1
		if answer.More = len(answer.Entries) == limit || size > answerBudget; answer.More {
			return false
		}
		answer.Entries = append(answer.Entries, e)
		return true
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// walk visits the tree below a directory, in the order of list and only what comes behind `after`. It follows no links. visit returns false to stop.
// Directories that can't be read or are gone, other than the first, count as empty.
func walk(dir string, depth int, after string, visit func(path string, st *syscall.Stat_t) bool) error {
	_, err := walkDir(dir, depth, after, visit)
	return err
}

func walkDir(dir string, depth int, after string, visit func(path string, st *syscall.Stat_t) bool) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return true, err
	}
	// Of the name in `after` that is in this directory, the entry itself has been visited, but maybe not all below it.
	done, inside := "", ""
	if rest, ok := strings.CutPrefix(after, strings.TrimSuffix(dir, "/")+"/"); ok {
		done, inside, _ = strings.Cut(rest, "/")
	}
	for _, d := range entries {
		name := d.Name()
		if done != "" && name < done {
			continue
		}
		at := join(dir, name)
		below := ""
		if name != done || done == "" {
			var st syscall.Stat_t
			if syscall.Lstat(at, &st) != nil {
				continue
			}
			if !visit(at, &st) {
				return false, nil
			}
		} else if inside != "" {
			below = after
		}
		if d.IsDir() && depth > 1 {
			if more, _ := walkDir(at, depth-1, below, visit); !more {
				return false, nil
			}
		}
	}
	return true, nil
}
