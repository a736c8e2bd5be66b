# What the measuring scripts of this folder share; they source it.

# The comment at the head of the script, as its usage.
usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

# need_files FILE...
need_files() {
  local file
  for file; do
    if [[ ! -e $file ]]; then
      echo "$(basename "$0"): error: [bench] $file: expected a file, got none" >&2
      exit 3
    fi
  done
}

# need_count FLAG VALUE: VALUE is a whole number above 0.
need_count() {
  if [[ ! $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "$(basename "$0"): error: [bench] $1: expected a whole number above 0, got '$2'" >&2
    exit 2
  fi
}

# Of the numbers on stdin; "-" if there are none.
median() {
  sort -g | awk '
    { v[NR] = $1 }
    END { print NR == 0 ? "-" : NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}
