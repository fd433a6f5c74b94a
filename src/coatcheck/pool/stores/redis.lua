-- One command, applied to one user's state in the server: the rules of coatcheck/pool/rules.py and slots.py once more,
-- function by function under the same names, to be read side by side. tests/contracts/test_redis_script.py holds the
-- two to each other with generated commands, states and clocks.
--
-- KEYS: the user's state (a hash).
-- ARGV: the policy, the command, the line on which it is called, the call's number on it, the user, the keys that the
-- caller opens values with; the channel on which processes hear whose turn it is, the user's name there, and the
-- tickets that wait in the calling process; when a state of the release before is converted, that state and the same
-- as written here.
-- Answers {'done', reply}, {'former', sealed state}, {'unknown_key'} or {'malformed'}; the last three change nothing.

local FAR = math.huge
local NONE_GIVEN, NOBODYS = '', '3f'
local MAX_FAILING, REFUSED_S, FAILURES_REMEMBERED_S = 8, 3600, 600
local REFRESHES_PER_TICKET_LIFE = 3
local KEEP_S, MAX_KEEP_S = 7 * 86400, 10 * 366 * 86400
local MAX_TOLD = 200
local KEY_DIGITS = 10
local LIMITING = {Acquire = true, LogInAhead = true, LoginDone = true, Add = true, Then = true}
local MAX_LINES, LINE_S = 64, 60
local ENDED_S = 0
local PROTECTED_S, PROTECTED_MAX_S, MAX_REFUSALS = 1, 60, 32

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local policy, command = cmsgpack.unpack(ARGV[1]), cmsgpack.unpack(ARGV[2])
local line, call, user, keys = 'call:' .. ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local channel, named, own_tickets = ARGV[7], ARGV[8], ARGV[9]
local state
local partings, notes = {}, {}

-- lists

local function filter(list, keep)
  local kept = {}
  for _, each in ipairs(list) do
    if keep(each) then kept[#kept + 1] = each end
  end
  return kept
end

local function copy(list)
  return filter(list, function() return true end)
end

local function place_of(list, wanted)
  for place, each in ipairs(list) do
    if each == wanted then return place end
  end
end

local function by_fence(list, fence)
  for place, each in ipairs(list) do
    if each.fence == fence then return each, place end
  end
end

local function by_credentials(list, credentials)
  for _, each in ipairs(list) do
    if each.credentials == credentials then return each end
  end
end

-- the state

local function new_user()
  local number = math.floor(now * 1000000)
  return {
    fence = number, first_fence = number, next_ticket = number,
    free = {}, leases = {}, closing = {}, tickets = {}, failing = {},
    refusals = 0, refused_at = -FAR, proven = NOBODYS, rate_at = -FAR, rate_s = FAR, next_deadline = FAR,
    counters = {logins = 0, login_failures = 0, drops = 0, lost = 0, timeouts = 0, not_leases = 0},
  }
end

local function slots_used()
  return #state.free + #state.leases + #state.closing
end

local function retry_at(failing)
  return failing.failed_at + failing.retry_s
end

local function failing_ends_at(failing)
  return retry_at(failing) + (failing.refused and 0 or FAILURES_REMEMBERED_S)
end

local function ends_at()
  local at = -FAR
  for _, token in ipairs(state.free) do at = math.max(at, token.expires_at) end
  for _, holding in ipairs(state.leases) do at = math.max(at, holding.deadline) end
  return at
end

local function is_idle()
  if slots_used() > 0 or #state.tickets > 0 or now < state.rate_at then return false end
  for _, failing in ipairs(state.failing) do
    if now < failing_ends_at(failing) then return false end
  end
  return true
end

-- slots.py

local function clamp_token(token)
  if token.used_at > now then
    token.used_at = now
    token.opened_at = math.min(token.opened_at or -FAR, now)
    token.dies_at = math.min(token.dies_at, now + token.span_s)
    token.expires_at = math.min(token.expires_at, now + token.life_s, token.dies_at)
  end
end

local function clamp_slot(slot)
  if slot.deadline > now + slot.length_s then
    slot.deadline = now + slot.length_s
    state.next_deadline = math.min(state.next_deadline, slot.deadline)
  end
end

local function clamp()
  for _, failing in ipairs(state.failing) do failing.failed_at = math.min(failing.failed_at, now) end
  state.rate_at = math.min(state.rate_at, now + state.rate_s)
  state.refusals, state.refused_at = state.refusals or 0, math.min(state.refused_at or -FAR, now)
  for _, holding in ipairs(state.leases) do
    clamp_slot(holding)
    if holding.token then clamp_token(holding.token) end
  end
  for _, closing in ipairs(state.closing) do clamp_slot(closing) end
  for _, token in ipairs(state.free) do clamp_token(token) end
  for _, ticket in ipairs(state.tickets) do
    ticket.alive_until = math.min(ticket.alive_until, now + policy.ticket_life_s)
  end
end

local function known_as(credentials)
  local mine = credentials[1] or NONE_GIVEN
  if #credentials > 1 then
    local former = {}
    for place = 2, #credentials do former[credentials[place]] = true end
    local function rename(thing)
      if former[thing.credentials] then thing.credentials = mine end
    end
    for _, token in ipairs(state.free) do rename(token) end
    for _, holding in ipairs(state.leases) do
      rename(holding)
      if holding.token then rename(holding.token) end
    end
    for _, ticket in ipairs(state.tickets) do rename(ticket) end
    for _, failing in ipairs(state.failing) do rename(failing) end
    if former[state.proven] then state.proven = mine end
  end
  return mine
end

local function is_refused(credentials)
  local failing = by_credentials(state.failing, credentials)
  return failing and failing.refused and now < retry_at(failing)
end

local function note_failure(credentials, refused)
  local failing = by_credentials(state.failing, credentials)
  if not failing then
    if #state.failing >= MAX_FAILING then
      local first, first_at = 0, nil
      for place, other in ipairs(state.failing) do
        local at = other.failed_at + other.keeps_place_s
        if not first_at or at < first_at then first, first_at = place, at end
      end
      table.remove(state.failing, first)
    end
    failing = {credentials = credentials, failures = 0}
    table.insert(state.failing, failing)
  end
  failing.failures = math.min(failing.failures + 1, 32)
  local backoff_s = math.min(policy.backoff_first_s * 2 ^ (failing.failures - 1), policy.backoff_max_s)
  failing.failed_at = now
  failing.retry_s = refused and REFUSED_S or backoff_s
  failing.keeps_place_s = policy.backoff_max_s
  failing.refused = refused
end

local function note_success(credentials)
  state.failing = filter(state.failing, function(failing) return failing.credentials ~= credentials end)
  state.proven = credentials
end

local function is_proven(credentials)
  if state.proven == credentials or by_credentials(state.free, credentials) then return true end
  for _, holding in ipairs(state.leases) do
    if holding.token and holding.token.credentials == credentials then return true end
  end
  return false
end

local function last_of(tokens, credentials)
  for place = #tokens, 1, -1 do
    if tokens[place].credentials == credentials then return tokens[place], place end
  end
end

local function idle_of_others(credentials)
  for place, token in ipairs(state.free) do
    if token.credentials ~= credentials then return token, place end
  end
end

local function login_allowed_at(credentials)
  local burst_s = policy.login_every_s * (policy.login_burst - 1)
  local rate_at = policy.login_every_s > 0 and state.rate_at - burst_s or -FAR
  local failing = by_credentials(state.failing, credentials)
  if failing then return math.max(rate_at, retry_at(failing)) end
  if #state.failing < MAX_FAILING or is_proven(credentials) then return rate_at end
  local place_at = FAR
  for _, other in ipairs(state.failing) do place_at = math.min(place_at, other.failed_at + other.keeps_place_s) end
  return math.max(rate_at, place_at)
end

local function may_log_in(mine, logging_in)
  if now < login_allowed_at(mine) then return false end
  return not by_credentials(state.failing, mine) or not place_of(logging_in, mine)
end

-- Calls visit(number, claim, token) for each caller who may have something, until it says true.
local function claims(callers, visit)
  local free = copy(state.free)
  local room, coming = policy.per_user - slots_used(), #state.closing
  local logging_in, refusing, in_vain = {}, false, nil
  for _, holding in ipairs(state.leases) do
    if not holding.token then table.insert(logging_in, holding.credentials) end
  end
  for _, failing in ipairs(state.failing) do refusing = refusing or failing.refused end
  for _, caller in ipairs(callers) do
    if #free == 0 and room <= 0 and not refusing then return end
    local mine = caller.credentials
    if mine ~= in_vain then
      local claim, token
      local last, place = last_of(free, mine)
      if last then
        table.remove(free, place)
        claim = 'token'
      elseif is_refused(mine) then
        claim = 'refused'
      elseif not may_log_in(mine, logging_in) then
        in_vain = mine
      elseif room > 0 then
        room = room - 1
        table.insert(logging_in, mine)
        claim = 'login'
      elseif coming > 0 then
        coming = coming - 1
        table.insert(logging_in, mine)
      elseif #free > 0 then
        table.insert(logging_in, mine)
        claim, token = 'make room', table.remove(free, 1)
      else
        in_vain = mine
      end
      if claim and visit(caller.number, claim, token) then return end
    end
  end
end

local function login_wait_s(credentials)
  if slots_used() >= policy.per_user and not idle_of_others(credentials) then return 0 end
  return math.max(0, login_allowed_at(credentials) - now)
end

local function changes_at(credentials)
  local limited_s = login_wait_s(credentials)
  return limited_s > 0 and math.min(state.next_deadline, now + limited_s) or state.next_deadline
end

local function is_spent(token)
  return token.uses >= policy.max_uses or now + policy.min_remaining_s >= token.expires_at
end

local function note(what, token, lease)
  if policy.audited then table.insert(notes, {what = what, token_id = token.token_id, lease = lease or 0}) end
end

local function why_spent(token)
  if token.span_s == ENDED_S then return 'removed' end
  return token.uses >= policy.max_uses and 'used_up' or 'expired'
end

local function hold(token, length_s, fence, credentials)
  local deadline = now + length_s
  if not fence then
    state.fence = state.fence + 1
    fence = state.fence
  end
  table.insert(state.leases, {
    fence = fence, token = token, deadline = deadline, length_s = length_s, credentials = credentials or NONE_GIVEN,
  })
  state.next_deadline = math.min(state.next_deadline, deadline)
  return fence
end

local function drop(token, why, lease, sign_out)
  state.counters.drops = state.counters.drops + 1
  note(why, token, lease)
  if sign_out ~= false and policy.signs_out then
    state.fence = state.fence + 1
    state.counters.not_leases = state.counters.not_leases + 1
    local closing = {
      fence = state.fence, value = token.value, sealed_for = token.sealed_for,
      deadline = now + policy.logout_timeout_s, length_s = policy.logout_timeout_s,
    }
    table.insert(state.closing, closing)
    state.next_deadline = math.min(state.next_deadline, closing.deadline)
    table.insert(partings, {
      fence = closing.fence, value = closing.value, sealed_for = closing.sealed_for, token_id = token.token_id,
    })
  end
end

local function give_back(token)
  token.used_at = now
  token.expires_at = math.min(now + token.life_s, token.dies_at)
  if is_spent(token) then
    drop(token, why_spent(token))
    return 0
  end
  table.insert(state.free, token)
  return 1
end

local function lose(holding, why)
  state.counters.lost = state.counters.lost + 1
  if not holding.token then
    state.counters.not_leases = state.counters.not_leases + 1
    return 0
  end
  drop(holding.token, why, holding.fence)
  return 1
end

local function sweep()
  local dropped = 0
  if now >= state.next_deadline then
    state.closing = filter(state.closing, function(closing) return now < closing.deadline end)
    local leases = state.leases
    state.leases = filter(leases, function(holding) return now < holding.deadline end)
    for _, holding in ipairs(leases) do
      if now >= holding.deadline then dropped = dropped + lose(holding, 'lost') end
    end
    state.next_deadline = FAR
    for _, holding in ipairs(state.leases) do state.next_deadline = math.min(state.next_deadline, holding.deadline) end
    for _, closing in ipairs(state.closing) do state.next_deadline = math.min(state.next_deadline, closing.deadline) end
  end
  local free = state.free
  state.free = filter(free, function(token) return not is_spent(token) end)
  for _, token in ipairs(free) do
    if is_spent(token) then
      drop(token, why_spent(token))
      dropped = dropped + 1
    end
  end
  state.failing = filter(state.failing, function(failing) return now < failing_ends_at(failing) end)
  if policy.ticket_life_s < FAR then
    state.tickets = filter(state.tickets, function(ticket) return now < ticket.alive_until end)
  end
  return dropped
end

local function doom(token)
  token.span_s, token.dies_at = ENDED_S, -FAR
end

local function count_of(mine, lent, coming)
  local count = 0
  for _, token in ipairs(state.free) do
    if token.credentials == mine then count = count + 1 end
  end
  for _, holding in ipairs(state.leases) do
    local token = holding.token
    local counts = coming
    if token then counts = lent and token.span_s ~= ENDED_S end
    if counts and (token or holding).credentials == mine then count = count + 1 end
  end
  return count
end

local function current(fence)
  local holding, place = by_fence(state.leases, fence)
  if holding and now < holding.deadline then return holding, place end
end

-- refusals.py

local function protected_s(refusals)
  return refusals > 0 and math.min(PROTECTED_S * 2 ^ (refusals - 1), PROTECTED_MAX_S) or 0
end

local function is_believed(refusals, age_s)
  return age_s >= protected_s(refusals)
end

local function counted(refusals, age_s)
  return age_s < 2 * protected_s(refusals) and math.min(refusals + 1, MAX_REFUSALS) or 1
end

-- rules.py: a function for each command, which returns the reply

local rules = {}

local function done(count)
  return {kind = 'Done', count = count or 1}
end

local function lost()
  return {kind = 'Lost'}
end

local function granted(fence, token, remaining_s, idle_s)
  return {
    kind = 'Granted', fence = fence, value = token.value, sealed_for = token.sealed_for,
    remaining_s = remaining_s, uses = token.uses, idle_s = idle_s or 0, token_id = token.token_id,
  }
end

local function ticket_of(number)
  for place, ticket in ipairs(state.tickets) do
    if ticket.number == number then return ticket, place end
  end
end

local function unqueue(number)
  local _, place = ticket_of(number)
  if place then table.remove(state.tickets, place) end
end

local function claim_of(command, mine)
  local ticket, callers = ticket_of(command.ticket), copy(state.tickets)
  if ticket then
    ticket.credentials = mine
  else
    ticket = {number = 0, credentials = mine}
    table.insert(callers, ticket)
  end
  if command.ahead then table.insert(callers, 1, table.remove(callers, place_of(callers, ticket))) end
  local claim, other
  claims(callers, function(number, its_claim, token)
    if number == ticket.number then
      claim, other = its_claim, token
      return true
    end
  end)
  return claim, other
end

local function serve(command)
  local ticket, place = ticket_of(command.ticket)
  if not ticket or command.more == 0 then return unqueue(command.ticket) end
  ticket.callers = command.more
  ticket.alive_until = now + policy.ticket_life_s
  if not command.ahead then table.insert(state.tickets, table.remove(state.tickets, place)) end
end

local function take(mine)
  local token, place = last_of(state.free, mine)
  table.remove(state.free, place)
  token.uses = token.uses + 1
  return granted(hold(token, policy.lease_s), token, policy.lease_s, now - token.used_at)
end

local function queue(command, mine, limited_s)
  local ticket = ticket_of(command.ticket)
  if not ticket then
    local waiting = 0
    for _, other in ipairs(state.tickets) do waiting = waiting + other.callers end
    if command.ticket == 0 and waiting >= policy.max_waiting then return {kind = 'QueueFull'} end
    ticket = {number = state.next_ticket, credentials = mine}
    state.next_ticket = state.next_ticket + 1
    table.insert(state.tickets, ticket)
  end
  ticket.alive_until = now + policy.ticket_life_s
  ticket.callers = 1 + command.more
  local again_s = math.min(changes_at(mine) - now, policy.ticket_life_s / REFRESHES_PER_TICKET_LIFE)
  local hopeless = limited_s > 0 and #state.closing == 0 and count_of(mine, true, true) == 0
  return {
    kind = 'Waiting', ticket = ticket.number, again_s = math.max(0, again_s), limited_s = limited_s, hopeless = hopeless,
  }
end

local function begin_login(mine)
  if policy.login_every_s > 0 then
    state.rate_at = math.max(state.rate_at, now) + policy.login_every_s
    state.rate_s = policy.login_every_s * policy.login_burst
  end
  return {kind = 'MustLogIn', fence = hold(nil, policy.login_timeout_s, nil, mine)}
end

function rules.LogInAhead(command)
  sweep()
  local mine = known_as(command.credentials)
  local logging_in = {}
  for _, holding in ipairs(state.leases) do
    if not holding.token then table.insert(logging_in, holding.credentials) end
  end
  if count_of(mine, not command.idle, true) >= command.sessions or #state.tickets > 0 or slots_used() >= policy.per_user then
    return {kind = 'NoToken', limited_s = 0}
  end
  if is_refused(mine) then return {kind = 'NotTried'} end
  if not may_log_in(mine, logging_in) then return {kind = 'NoToken', limited_s = login_wait_s(mine)} end
  return begin_login(mine)
end

function rules.Acquire(command)
  sweep()
  local mine = known_as(command.credentials)
  local claim, other = claim_of(command, mine)
  if claim == 'token' then
    serve(command)
    return take(mine)
  end
  if claim == 'refused' and command.may_login then
    unqueue(command.ticket)
    return {kind = 'NotTried'}
  end
  if claim == 'make room' and command.may_login then
    table.remove(state.free, place_of(state.free, other))
    drop(other, 'room')
    if slots_used() < policy.per_user then claim = 'login' end
  end
  if claim == 'login' and command.may_login then
    serve(command)
    return begin_login(mine)
  end
  local limited_s = login_wait_s(mine)
  if not command.may_wait then return {kind = 'NoToken', limited_s = limited_s} end
  return queue(command, mine, limited_s)
end

function rules.Leave(command)
  unqueue(command.ticket)
  state.counters.timeouts = state.counters.timeouts + command.timed_out
  return done()
end

local function fresh(command, token_id, credentials)
  local dies_at = now + (command.span_s or FAR)
  return {
    token_id = token_id, value = command.value, sealed_for = command.sealed_for, credentials = credentials,
    life_s = command.life_s, expires_at = math.min(now + command.life_s, dies_at),
    dies_at = dies_at, span_s = command.span_s or FAR, uses = 1, used_at = now, opened_at = now,
  }
end

function rules.LoginDone(command)
  local holding, place = current(command.fence)
  if not holding or holding.token then return lost() end
  state.counters.logins = state.counters.logins + 1
  note_success(holding.credentials)
  table.remove(state.leases, place)
  local token = fresh(command, command.fence, holding.credentials)
  hold(token, policy.lease_s, command.fence)
  note('opened', token)
  return granted(command.fence, token, policy.lease_s)
end

function rules.LoginEnded(command)
  local holding, place = by_fence(state.leases, command.fence)
  local mine = known_as(command.credentials)
  if holding and not holding.token then
    mine = holding.credentials
    table.remove(state.leases, place)
    state.counters.not_leases = state.counters.not_leases + 1
    state.rate_at = state.rate_at - policy.login_every_s
  end
  if command.failed then
    state.counters.login_failures = state.counters.login_failures + 1
    note_failure(mine, command.refused)
  end
  if not holding then return lost() end
  return done(command.failed and count_of(mine, true, false) or 1)
end

function rules.Release(command)
  local holding, place = current(command.fence)
  if not holding or not holding.token then
    sweep()
    return lost()
  end
  table.remove(state.leases, place)
  local token = holding.token
  if command.value then
    token.value, token.sealed_for = command.value, command.sealed_for
    if not command.resealed and token.span_s ~= ENDED_S then
      token.span_s = command.span_s or token.span_s
      token.dies_at = now + token.span_s
    end
  end
  if command.unused then token.uses = token.uses - 1 end
  if command.keep then
    if not command.unused then note('returned', token, command.fence) end
    return done(give_back(token))
  end
  drop(token, command.sign_out and 'given_up' or 'dead', command.fence, command.sign_out)
  return done(0)
end

function rules.Extend(command)
  local holding = current(command.fence)
  if not holding or not holding.token then return lost() end
  if command.renew then
    holding.deadline, holding.length_s = now + policy.lease_s, policy.lease_s
  end
  return granted(command.fence, holding.token, holding.deadline - now)
end

function rules.RefuseToken(command)
  local holding = current(command.fence)
  local token = holding and holding.token
  if not token then return lost() end
  local opened_at = token.opened_at or -FAR
  local age_s, is_newer = now - opened_at, opened_at >= state.refused_at
  if command.fence == token.token_id then
    if is_newer and state.refusals == 0 then state.refusals, state.refused_at = 1, opened_at end
    note('kept', token, command.fence)
    return done(0)
  end
  if is_newer then
    if not is_believed(state.refusals, age_s) then
      note('kept', token, command.fence)
      return done(0)
    end
    state.refusals, state.refused_at = counted(state.refusals, age_s), now
  end
  note('refused', token, command.fence)
  return done()
end

function rules.LogoutEnded(command)
  local _, place = by_fence(state.closing, command.fence)
  if not place then return lost() end
  table.remove(state.closing, place)
  return done()
end

function rules.Add(command)
  sweep()
  local mine = known_as(command.credentials)
  if slots_used() >= policy.per_user and #state.closing == 0 then
    local other, place = idle_of_others(mine)
    if other then
      table.remove(state.free, place)
      drop(other, 'room')
    end
  end
  if slots_used() >= policy.per_user then return {kind = 'NoSlot'} end
  state.fence = state.fence + 1
  state.counters.not_leases = state.counters.not_leases + 1
  local token = fresh(command, state.fence, mine)
  note('opened', token)
  give_back(token)
  return done()
end

function rules.TakeIdle(command)
  sweep()
  if #state.tickets > 0 or #state.free == 0 or now - state.free[1].used_at < command.idle_s then
    return {kind = 'NoToken', limited_s = 0}
  end
  local token = table.remove(state.free, 1)
  return granted(hold(token, policy.lease_s), token, policy.lease_s)
end

function rules.Remove(command)
  local function chosen(token)
    return token and (not command.token_id or command.token_id == token.token_id)
  end
  local count, leases, free = 0, state.leases, state.free
  if not command.soft then
    state.leases = filter(leases, function(holding) return not chosen(holding.token) end)
  end
  for _, holding in ipairs(leases) do
    if chosen(holding.token) then
      if command.soft then doom(holding.token) else lose(holding, 'removed') end
      count = count + 1
    end
  end
  state.free = filter(free, function(token) return not chosen(token) end)
  for _, token in ipairs(free) do
    if chosen(token) then
      drop(token, 'removed')
      count = count + 1
    end
  end
  return done(count)
end

function rules.Reset()
  local count, leases, free = 0, state.leases, state.free
  state.closing, state.leases, state.free, state.failing = {}, {}, {}, {}
  for _, holding in ipairs(leases) do count = count + lose(holding, 'reset') end
  for _, token in ipairs(free) do drop(token, 'reset') end
  state.refusals, state.refused_at, state.rate_at = 0, -FAR, -FAR
  sweep()
  return done(count + #free)
end

function rules.CleanUp()
  return done(sweep())
end

function rules.Then(command)
  local first, second = rules[command.first.type](command.first), command.second
  if first.kind == 'Lost' then second.ahead = false end
  return {kind = 'Both', first = first, second = rules.Acquire(second)}
end

-- For the store itself: whose a slot is, when the caller did not see it granted; and an idle user is deleted.

function rules.Owner(command)
  local holding = by_fence(state.leases, command.fence)
  if not holding then return lost() end
  local token = holding.token
  return {
    kind = 'Owner', sealed_for = token and token.sealed_for or holding.credentials, value = token and token.value,
  }
end

function rules.Forget()
  return done(is_idle() and 1 or 0)
end

-- what is stored

local function is_former(stored)
  return string.byte(stored, 1) == 1
end

-- Whether this caller has the key of every value that somebody may still get.
local function opens_all()
  local function opens(value)
    return string.find(keys, string.sub(value, 1, KEY_DIGITS), 1, true)
  end
  for _, token in ipairs(state.free) do
    if now < token.expires_at and not opens(token.value) then return false end
  end
  for _, holding in ipairs(state.leases) do
    if holding.token and now < holding.deadline and not opens(holding.token.value) then return false end
  end
  return true
end

-- A line has one call at a time, so its last reply is all that a call after a lost reply may ask for.
local function forget_old_lines()
  local all = redis.call('HGETALL', KEYS[1])
  for place = 1, #all, 2 do
    local at = string.match(all[place], '^call:') and string.match(all[place + 1], '^%S+ (%S+)')
    if at and (now - at > LINE_S or at - now > LINE_S) then redis.call('HDEL', KEYS[1], all[place]) end
  end
end

local function write(changed, reply)
  local note = call .. ' ' .. string.format('%.3f', now) .. ' ' .. reply
  local is_new = redis.call('HSET', KEYS[1], 's', changed, 'u', user, line, note) > 0
  local keep_s = math.min(KEEP_S + math.max(0, ends_at() - now), MAX_KEEP_S)
  redis.call('EXPIRE', KEYS[1], string.format('%d', keep_s))
  if is_new and redis.call('HLEN', KEYS[1]) > MAX_LINES then forget_old_lines() end
end

-- Whose turn it is. Those of other processes are told so, if they hear it; the caller wakes its own.
local function turns()
  local numbers, elsewhere = {}, {}
  claims(state.tickets, function(number)
    local shown = string.format('%d', number)
    table.insert(numbers, number)
    if not string.find(own_tickets, ',' .. shown .. ',', 1, true) and #elsewhere < MAX_TOLD then
      table.insert(elsewhere, shown)
    end
  end)
  if #elsewhere > 0 then redis.pcall('PUBLISH', channel, named .. ':' .. table.concat(elsewhere, ',')) end
  return numbers
end

local stored, last, converted = unpack(redis.call('HMGET', KEYS[1], 's', line))
if last and string.sub(last, 1, #call + 1) == call .. ' ' then
  return {'done', string.match(last, '^%S+ %S+ (.*)$')}
end
if stored and is_former(stored) then
  if stored ~= ARGV[10] then return {'former', stored} end
  stored, converted = ARGV[11], true
end
local is_ours = true
if stored then
  is_ours, state = pcall(cmsgpack.unpack, stored)
  is_ours = is_ours and type(state) == 'table' and type(state.fence) == 'number'
else
  state = new_user()
end
if not is_ours then return {'malformed'} end
if command.type ~= 'Reset' and not opens_all() then return {'unknown_key'} end
clamp()
local answer = rules[command.type](command)
local reply = cmsgpack.pack({answer, partings, turns(), notes})
if LIMITING[command.type] then
  state.limits = {policy.per_user, policy.max_uses}
end
local changed = cmsgpack.pack(state)
if command.type == 'Forget' then
  if answer.count == 1 then redis.call('DEL', KEYS[1]) end
elseif converted or changed ~= stored and (stored or state.fence > state.first_fence or not is_idle()) then
  if converted then redis.call('HDEL', KEYS[1], 'v') end
  write(changed, reply)
end
return {'done', reply}
