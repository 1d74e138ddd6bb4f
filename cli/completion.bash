# SPDX-License-Identifier: LGPL-2.1-or-later
# bash completion for crctl(1)

_crctl_images() { crctl list 2>/dev/null | awk 'NR > 1 { print $1 }'; }

_crctl_units() {
    systemctl list-units --type=service --state=running --plain --no-legend 2>/dev/null |
        awk '{ print $1 }'
}

_crctl_image_units() { _crctl_images | cut -d/ -f1 | sort -u; }

_crctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} verb= word words=
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $word in
            -*) ;;
            *) verb=$word && break ;;
        esac
    done
    case $verb in
        '') words='checkpoint restore enable disable list show explain rm jobs policy --json --help --version' ;;
        checkpoint) words="--mode --timeout --no-sync --no-wait --json $(_crctl_units)" ;;
        restore) words="--timeout --no-wait --json $(_crctl_image_units) $(_crctl_images)" ;;
        enable) words="--json $(_crctl_units)" ;;
        disable) words="--json $(_crctl_image_units)" ;;
        list) words="--json $(_crctl_image_units)" ;;
        show | explain) words="--json $(_crctl_images)" ;;
        rm) words="--force --json $(_crctl_images)" ;;
        jobs) words='cancel follow --json' ;;
        policy) words='check show reload --json' ;;
    esac
    [ "${COMP_WORDS[COMP_CWORD-1]}" != --mode ] || words='stop suspend snapshot'
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
    [ "$verb" != policy ] || mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$cur")
}

complete -F _crctl crctl
